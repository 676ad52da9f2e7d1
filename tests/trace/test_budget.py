"""A trace stays within its budget, and no extreme is lost on the way."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnnstab.errors import UsageError
from gnnstab.records import Event, Measure, SeriesKey, StepRow
from gnnstab.trace import Trace, TraceWriter
from gnnstab.trace._resolution import (
    COUNT,
    FACTOR,
    FOREVER,
    MAXIMUM,
    MINIMUM,
    NON_FINITE,
    RMS,
    SPAN,
    STEP,
    coarser,
    gather,
    level_of,
)

BUDGET = 512 * 1024
STEPS, SERIES = 4000, 4
KEYS = [SeriesKey(f"gnn{i}", "train", 0, "score") for i in range(SERIES)]


def on_disk(path: Path) -> int:
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name))


def long_run(writer: TraceWriter, path: Path | None) -> int:
    """16 000 statistics (0.9 MB) with spikes, NaN and Inf early on; returns the largest size on the way."""
    rng = np.random.default_rng(0)
    ids = [writer.series(key) for key in KEYS]
    largest = 0
    for step in range(STEPS):
        rows = np.abs(rng.standard_normal((SERIES, 5)))
        rows[:, 0], rows[:, 3], rows[:, 4] = -rows[:, 0], 7.0, 0.0
        if step == 11:
            rows[0, 1], rows[1, 0] = 1e30, -1e30
        if step == 12:
            rows[0, :3], rows[0, 4] = (math.nan, math.nan, math.nan), -1.0
            rows[2, :3], rows[2, 4] = (-math.inf, 5.0, math.inf), 3.0
        writer.sites(step, ids, rows)
        loss = math.nan if step == 13 else 100.0 if step == 14 else 1.0 + 1.0 / (step + 1)
        writer.step(StepRow(step, step * 0.01, loss, 1e-3, None, 50.0 if step == 15 else 1.0, skipped=step == 17))
        if step % 10 == 0:
            value = math.nan if step == 30 else 77.0 if step == 50 else -77.0 if step == 70 else math.sin(step)
            writer.measures([Measure(step, "gnn0", "train", 0, "attention.entropy", head, value) for head in range(2)])
        if step % 100 == 0:
            writer.event(Event(step, "note", message=f"event {step}"))
            writer.flush()
            largest = max(largest, 0 if path is None else on_disk(path))
    writer.flush()
    return largest


@pytest.fixture(scope="module", params=["file", "memory"])
def thinned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    path = None if request.param == "memory" else tmp_path_factory.mktemp("budget") / "run.gnnstab"
    with TraceWriter(path, budget=BUDGET) as writer:
        largest = long_run(writer, path)
        assert writer.failure is None
        with writer.read() as trace:
            yield trace, largest


def test_the_file_stays_within_the_budget(thinned: tuple[Trace, int]) -> None:
    trace, largest = thinned
    assert largest <= BUDGET
    assert sum(map(len, trace.sites().values())) < STEPS * SERIES / 2


def test_totals_and_extremes_of_every_series_stay(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    arrays = trace.sites()
    for key in KEYS:
        rows = arrays[key]
        assert rows["span"].sum() == STEPS
        assert rows["count"].sum() == 7 * STEPS
        assert np.all(np.diff(rows["step"]) >= 0)
        assert rows["span"].max() >= FACTOR
    assert np.nanmax(arrays[KEYS[0]]["maximum"]) == 1e30
    assert np.nanmin(arrays[KEYS[1]]["minimum"]) == -1e30


def test_non_finite_values_stay_beside_the_extremes_of_their_neighbours(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    first, third = (trace.sites(layer=key.layer)[key] for key in (KEYS[0], KEYS[2]))
    bad = first[~np.isfinite(first["maximum"])]
    assert len(bad) == 1
    assert bad["step"][0] <= 12 < bad["step"][0] + FACTOR**2
    assert np.isnan([bad["minimum"][0], bad["rms"][0]]).all()
    assert bad["non_finite"][0] == -1
    (row,) = third[third["minimum"] == -math.inf]
    assert (row["maximum"], row["rms"], row["non_finite"]) == (5.0, math.inf, 3)


def test_the_newest_steps_keep_their_resolution(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    for rows in trace.sites().values():
        newest = rows[rows["step"] >= STEPS - 300]
        assert len(newest) == 300
        assert set(newest["span"]) == {1}


def test_steps_keep_what_is_rare_and_what_is_extreme(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    rows = {row.step: row for row in trace.steps()}
    assert len(rows) < STEPS
    assert math.isnan(rows[13].loss or 0.0)
    assert (rows[14].loss, rows[15].grad_norm, rows[17].skipped) == (100.0, 50.0, True)
    assert 0 in rows
    assert STEPS - 1 in rows


def test_measures_keep_their_extremes_per_stream(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    for head in range(2):
        values = [row.value for row in trace.measures() if row.head == head]
        assert {77.0, -77.0} <= set(values)
        assert any(map(math.isnan, values))


def test_events_are_never_thinned(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    assert [event.step for event in trace.events()] == list(range(0, STEPS, 100))


@pytest.mark.parametrize("thinned", ["file"], indirect=True)
def test_the_view_shows_what_the_reader_shows(thinned: tuple[Trace, int]) -> None:
    """Of a trace on disk; no other client can look into one in memory."""
    trace, _ = thinned
    connection = sqlite3.connect(trace.path)
    query = "SELECT layer, count(*), sum(span), max(maximum) FROM statistics GROUP BY layer"
    seen = connection.execute(query).fetchall()
    (measures,) = connection.execute("SELECT count(*) FROM measures WHERE name = 'attention.entropy'").fetchone()
    connection.close()
    arrays = trace.sites()
    assert seen == [(k.layer, len(arrays[k]), STEPS, np.nanmax(arrays[k]["maximum"])) for k in KEYS]
    assert measures == len(trace.measures())


def test_many_measures_alone_stay_within_the_budget(path: Path) -> None:
    with TraceWriter(path, budget=BUDGET) as writer:
        for step in range(2000):
            writer.measures([Measure(step, "a", "train", 0, "loss", head, step + head, "x" * 40) for head in range(12)])
            if step % 20 == 0:
                writer.flush()
                assert on_disk(path) <= BUDGET
        with writer.read() as trace:
            found = trace.measures()
        assert {row.value for row in found if row.head == 0} >= {0.0, 1999.0}
        assert len(found) < 2000 * 12


def test_a_budget_that_cannot_be_met_does_not_stop_the_recording(path: Path, record: Callable[..., None]) -> None:
    with TraceWriter(path, budget=256 * 1024) as writer:
        for part in range(4):
            record(writer, range(part * 5, part * 5 + 5), series=1500)
            writer.flush()
        assert writer.failure is None
        with writer.read() as trace:
            assert trace.last_step == 19
            assert all(rows["span"].sum() == 20 for rows in trace.sites().values())


@pytest.mark.parametrize(("limit", "value", "kept"), [("EVENTS_LIMIT", 5, 5), ("EVENTS_TEXT", 1000, 4)])
def test_events_beyond_the_cap_are_counted(limit: str, value: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written can be read: the reader takes no more text than this from anybody."""
    monkeypatch.setattr(f"gnnstab.trace._queue.{limit}", value)
    with TraceWriter(None) as writer:
        for step in range(9):
            writer.event(Event(step, "note", message="x" * 200))
        with writer.read() as trace:
            assert [event.step for event in trace.events()] == list(range(kept))
            assert trace.meta["dropped.events"] == str(9 - kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 2**30}, "at most 134217728"),
        ({"budget": 1000}, "give at least 262144"),
        ({"flush_seconds": 0}, "positive number of seconds"),
    ],
)
def test_a_budget_out_of_bounds_is_refused(options: dict[str, int], message: str, path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        TraceWriter(path, **options)


def test_levels_of_rows_are_a_binary_ruler() -> None:
    assert [level_of(ordinal) for ordinal in range(9)] == [FOREVER, 0, 1, 0, 2, 0, 1, 0, 3]


values = st.floats(-1e150, 1e150) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
tables = st.lists(
    st.tuples(
        *map(st.integers, (0, 1), (40, 3)), values, values, st.floats(0, 1e300), *map(st.integers, (0, -1), (99, 9))
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 3))
def test_pooling_agrees_with_a_plain_loop(rows: list[tuple[float, ...]], level: int) -> None:
    fine, refused = gather([(int(row[0]), [int(row[1])], np.array([row[2:]])) for row in rows])
    assert refused == 0
    pooled = coarser(fine, level)
    stride = FACTOR**level
    groups: dict[tuple[float, float, bool], list[tuple[float, ...]]] = {}
    for row in rows:
        finite = all(map(math.isfinite, row[2:5]))
        groups.setdefault((row[0] // stride * stride, row[1], not finite), []).append(row)
    assert {(r[0], r[1], bool(r[2])) for r in pooled} == set(groups)
    for result in pooled:
        check_group(result, groups[result[0], result[1], bool(result[2])])


@pytest.mark.parametrize("twice", [False, True])
def test_rows_come_out_the_same_whatever_the_order_of_series_within_a_step(*, twice: bool) -> None:
    generator = np.random.default_rng(0)
    ids = (7, 2, 9, 4)
    steps = [(step, np.abs(generator.normal(size=(4, 5)))) for step in range(3, 21)]
    steps += steps[-1:] if twice else []
    order = np.argsort(ids)
    plain = [(step, tuple(sorted(ids)), rows[order]) for step, rows in steps]
    found = gather([(step, ids, rows) for step, rows in steps], shared={9, 2})[0]
    np.testing.assert_array_equal(found, gather(plain, shared={2, 9})[0])
    np.testing.assert_array_equal(found[:, :2], np.unique(found[:, :2], axis=0))
    alone, shared = found[found[:, 1] == 4], found[found[:, 1] == 9]
    np.testing.assert_allclose(alone[:, RMS], [rows[3, 2] for _, rows in steps[:18]])
    assert shared[:, SPAN].tolist() == [5, 8, 5]


def check_group(result: NDArray[np.float64], rows: list[tuple[float, ...]]) -> None:
    count = sum(row[5] for row in rows)
    assert result[SPAN] == len(rows)
    assert result[COUNT] == count
    assert result[NON_FINITE] == (-1 if any(row[6] < 0 for row in rows) else sum(row[6] for row in rows))
    np.testing.assert_array_equal(result[MINIMUM], np.min([row[2] for row in rows]))
    np.testing.assert_array_equal(result[MAXIMUM], np.max([row[3] for row in rows]))
    largest = max(row[4] for row in rows)
    mean = sum((row[4] / largest) ** 2 * row[5] for row in rows) / count if largest and count else 1.0
    np.testing.assert_allclose(result[RMS], largest * math.sqrt(mean), rtol=1e-12)
    assert result[STEP] <= rows[0][0]


def test_peaks_survive_thinning_with_the_steps_that_hold_them(thinned: tuple[Trace, int]) -> None:
    trace, _ = thinned
    for key in KEYS[:2]:
        peak = trace.peaks("size")[key]
        assert peak.value == 1e30
        assert peak.step <= 11 < peak.step + peak.span
