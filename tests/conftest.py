"""Shared by all tests."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors on two noisy cores run faster, and repeatably, on one thread; torch is not imported for this."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """What another test has compiled in this process would tell the monitor that parts of the run are compiled."""
    if dynamo := sys.modules.get("torch._dynamo.utils"):
        dynamo.counters.clear()
