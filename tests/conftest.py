"""Shared by all tests."""

import gc
import os
import sys
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import pytest

# Also in the processes that tests start: with a thread per core each they would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A command that takes all cores would start processes of its own beside the workers of pytest.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded and collected, a million objects and more, stays until the end: looking for garbage among it again and again would take a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        # What a test leaves in cycles is little: to look for it after every 700 objects, as is usual, would be one part in a hundred.
        gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary() -> None:
    """Plugins that are loaded for it ask the collector who holds an object of theirs."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of readers that fork come first: it takes half the time while little has been loaded."""
    items.sort(key=lambda item: "security" not in item.path.parts)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors on two noisy cores run faster, and repeatably, on one thread; torch is not imported for this."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_warning_passes_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A warning of gnnstab's that the suite turns into an error is shown and not raised: it fails the test all the same."""
    told: list[str] = []
    show = warnings.showwarning

    def shown(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        own = type(message).__name__ == "GnnstabWarning"
        told.append(str(message)) if own else show(message, *args, **kwargs)

    monkeypatch.setattr(warnings, "showwarning", shown)
    yield
    assert not told


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    """What another test has compiled in this process would tell the monitor that parts of the run are compiled."""
    if dynamo := sys.modules.get("torch._dynamo.utils"):
        dynamo.counters.clear()


@pytest.fixture
def own_network() -> Iterator[None]:
    """For tests that import a module ``network`` from a folder of their own: no other test's is there, and none is left."""
    sys.modules.pop("network", None)
    yield
    sys.modules.pop("network", None)


@pytest.fixture
def brief() -> Iterator[None]:
    """For tests that ask nothing of trial steps."""
    from side_by_side import brief_trials

    with brief_trials():
        yield


@pytest.fixture
def untried() -> Iterator[None]:
    """For tests of what a run records, which ask nothing of what is tried when it has ended."""
    from side_by_side import without_trials

    with without_trials():
        yield
