from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnstab.records import SeriesKey, StepRow
from gnnstab.trace import TraceWriter

KEY = SeriesKey("gnn1", "train", 0, "score")

Child = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.gnnstab"


@pytest.fixture
def record() -> Callable[..., None]:
    """Post ``steps`` steps of ``series`` series; the maximum of series i at step s is ``s + i / 100``."""

    def post(writer: TraceWriter, steps: range, series: int = 3, **extra: Any) -> None:
        ids = [writer.series(SeriesKey(f"gnn{i}", "train", 0, "score")) for i in range(series)]
        for step in steps:
            rows = np.zeros((series, 5))
            rows[:, 0], rows[:, 1] = -1.0, step + np.arange(series) / 100
            rows[:, 2], rows[:, 3] = 2.0, 10
            writer.sites(step, ids, rows)
            writer.step(StepRow(step, step * 0.01, 1.0 / (step + 1), 1e-3, None, 1.0))
            if step % 500 == 499:
                writer.flush()

    return post


@pytest.fixture
def child() -> Any:
    """Start a Python program in another process; whatever still runs at the end of the test is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
