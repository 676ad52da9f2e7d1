"""A recorded run for the sinks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import runs
from gnnstab.trace import Trace


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "run.gnnstab"
    runs.record(path, 30, overflow_at=25)
    return path


@pytest.fixture
def trace(recorded: Path) -> Iterator[Trace]:
    with Trace.open(recorded) as opened:
        yield opened
