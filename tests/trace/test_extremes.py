"""The largest values of a run come back exactly, whatever else of old steps has been pooled."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gnnstab.records import SeriesKey
from gnnstab.trace import Trace, TraceWriter

KEY = SeriesKey("conv", "train", 0, "score")


def written(path: Path, rows: np.ndarray, **options: int) -> Trace:
    with TraceWriter(path, **options) as writer:
        series = writer.series(KEY)
        for step, (low, high, rms) in enumerate(rows.tolist()):
            writer.sites(step, [series], [(low, high, rms, 10, 0)])
            if step % 500 == 0:
                writer.flush()
    return Trace.open(path)


@pytest.mark.parametrize("steps", [1, 7, 3000])
def test_peaks_are_those_of_a_plain_search(tmp_path: Path, steps: int) -> None:
    rng = np.random.default_rng(steps)
    high = rng.exponential(5.0, steps)
    rows = np.stack([-rng.exponential(5.0, steps), high, high / 3], axis=1)
    with written(tmp_path / "run.gnnstab", rows) as trace:
        size, rms = trace.peaks("size")[KEY], trace.peaks("rms")[KEY]
    sizes = np.abs(rows[:, :2]).max(axis=1)
    assert (size.value, size.step, size.span) == (sizes.max(), int(sizes.argmax()), 1)
    assert (rms.value, rms.step) == (rows[:, 2].max(), int(rows[:, 2].argmax()))


def test_values_that_are_not_finite_are_no_peaks(tmp_path: Path) -> None:
    rows = np.array([[-1.0, 2.0, 1.0], [-math.inf, math.inf, math.inf], [math.nan] * 3, [-3.0, 1.0, 2.0]])
    with written(tmp_path / "run.gnnstab", rows) as trace:
        assert trace.peaks("size")[KEY] == (3.0, 3, 1)
        assert trace.peaks("rms")[KEY] == (2.0, 3, 1)
