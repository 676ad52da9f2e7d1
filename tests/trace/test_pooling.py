"""Rows of several steps: shared by parameter gradients, and of the coarser levels once their steps are over."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from gnnstab.records import SeriesKey
from gnnstab.trace import Trace, TraceWriter
from gnnstab.trace._resolution import FACTOR, LEVELS, RMS, STEP, OpenBuckets, coarser

SCORE, GRADIENT = SeriesKey("a", "train", 0, "score"), SeriesKey("a.weight", "train", 0, "weight_grad")


def record(path: Path, values: np.ndarray, flush_every: int) -> Trace:
    with TraceWriter(path, flush_seconds=1000.0) as writer:
        ids = tuple(writer.series(key) for key in (SCORE, GRADIENT))
        for step, value in enumerate(values):
            writer.sites(step, ids, [(-value, value, abs(value), 4, 0 if math.isfinite(value) else -1)] * 2)
            if step % flush_every == flush_every - 1:
                writer.flush()
    return Trace.open(path)


def test_parameter_gradients_written_together_share_rows_and_lose_no_extreme(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=64)
    values[[9, 30]] = 50.0, math.nan
    with record(tmp_path / "run.gnnstab", values, flush_every=64) as trace:
        found = trace.sites()
    assert found[SCORE]["span"].tolist() == [1] * 64
    rows = found[GRADIENT]
    assert len(rows) == 64 // FACTOR + 1
    assert rows["span"].sum() == 64
    assert np.nanmax(rows["maximum"]) == 50.0
    (bad,) = rows[rows["non_finite"] != 0]
    assert (bad["step"], bad["span"], math.isnan(bad["rms"])) == (30, 1, True)
    (first,) = rows[rows["step"] == 0]
    assert first["rms"] == pytest.approx(math.sqrt(np.square(values[:8]).mean()))
    assert (first["minimum"], first["maximum"]) == ((-values[:8]).min(), values[:8].max())


def test_parameter_gradients_written_one_by_one_keep_every_step(tmp_path: Path) -> None:
    values = np.arange(1.0, 20.0)
    with record(tmp_path / "run.gnnstab", values, flush_every=1) as trace:
        rows = trace.sites(site="weight_grad")[GRADIENT]
    assert rows["step"].tolist() == list(range(19))
    assert rows["maximum"].tolist() == values.tolist()


@pytest.mark.parametrize("flush_every", [1, 7, 100])
def test_coarse_rows_are_the_same_however_often_they_are_written(tmp_path: Path, flush_every: int) -> None:
    values = np.random.default_rng(1).normal(size=700)
    with record(tmp_path / "run.gnnstab", values, flush_every) as trace:
        connection = sqlite3.connect(trace.path)
        for level in range(1, LEVELS):
            stride = FACTOR**level
            rows = connection.execute(
                "SELECT step, span, maximum, rms FROM statistic WHERE level = ? AND series = 1 ORDER BY step", (level,)
            ).fetchall()
            starts = range(0, 700 // stride * stride, stride)
            own = [values[start : start + stride] for start in starts]
            assert [row[:3] for row in rows] == [(s, stride, v.max()) for s, v in zip(starts, own, strict=True)]
            assert [row[3] for row in rows] == pytest.approx([math.sqrt(np.square(v).mean()) for v in own])
        connection.close()


@pytest.mark.parametrize("points", [1, 5, 64, 600])
def test_a_short_look_covers_every_step_once(tmp_path: Path, points: int) -> None:
    with record(tmp_path / "run.gnnstab", np.ones(700), flush_every=50) as trace:
        found = trace.sites(points=points)
    assert all(rows["span"].sum() == 700 for rows in found.values())


def test_rows_that_wait_come_out_when_their_bucket_is_over() -> None:
    def rows(*steps: int) -> np.ndarray:
        matrix = np.zeros((len(steps), 9))
        matrix[:, STEP], matrix[:, 1], matrix[:, 3], matrix[:, 7] = steps, 1.0, 1.0, 1.0
        matrix[:, RMS] = steps
        return matrix

    over, waiting = OpenBuckets().add(rows(*range(7)))
    assert [len(level) for level in over] == [0] * (LEVELS - 1)
    over, waiting = waiting.add(rows(7, 8))
    assert over[0] == pytest.approx(coarser(rows(*range(8)), 1))
    late, waiting = waiting.add(rows(3))
    assert late[0][:, STEP].tolist() == [0.0]
    assert sum(len(level) for level in waiting.rows) == 2
