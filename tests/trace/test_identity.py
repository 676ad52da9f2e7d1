"""What is written is what is read."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import Trace, TraceWriter

HOSTILE = [
    "",
    "gnn.gnn2.0",
    "'; DROP TABLE statistic; --",
    'a"b\\c\n\t\0d',
    "<script>alert(1)</script>",
    "слой🧠\u202e\ufeff",
    "x" * 10_000,
    "nan",
    "%s{0}",
]
names = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30))
floats = st.one_of(
    st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, -0.0, 1.7e-310, 3.4e38])
)
steps = st.integers(-(2**53), 2**53)
counts = st.integers(0, 2**40)
keys = st.builds(SeriesKey, names, st.sampled_from(["train", "eval"]), st.integers(0, 9), names)
calm = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def equal(first: Any, second: Any) -> bool:
    """Equality in which NaN equals itself."""
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (math.isnan(first) and math.isnan(second))
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def round_trip(fill: Callable[[TraceWriter], None], look: Callable[[Trace], None], *, in_memory: bool) -> None:
    """Fill a trace, look at it while it is open, and again when it is closed."""
    with tempfile.TemporaryDirectory() as folder:
        writer = TraceWriter(None if in_memory else Path(folder) / "run.gnnstab")
        try:
            fill(writer)
            for _ in range(2):
                with writer.read() as trace:
                    look(trace)
                    assert trace.notes == ()
                writer.close()
            assert writer.failure is None
        finally:
            writer.close()


@calm
@given(
    st.dictionaries(
        st.tuples(steps, keys),
        st.tuples(floats, floats, floats, counts, st.integers(-1, 2**40)),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
    st.booleans(),
)
def test_site_statistics(rows: dict[Any, Any], as_array: bool, in_memory: bool) -> None:
    def fill(writer: TraceWriter) -> None:
        for (step, key), row in rows.items():
            writer.sites(step, [writer.series(key)], np.array([row]) if as_array else [row])

    def look(trace: Trace) -> None:
        found = {
            (int(row["step"]), key): tuple(row.tolist()[2:7])
            for key, array in trace.sites().items()
            for row in array
            if row["span"] == 1 and row["rank"] == -1
        }
        assert found.keys() == rows.keys()
        assert all(equal(found[key], (*map(float, row[:3]), *row[3:])) for key, row in rows.items())
        for array in trace.sites().values():
            assert list(array["step"]) == sorted(array["step"])
        assert set(trace.keys().values()) == {key for _, key in rows}
        assert trace.last_step == max(step for step, _ in rows)

    round_trip(fill, look, in_memory=in_memory)


@calm
@given(
    st.lists(
        st.builds(
            Measure, steps, names, names, st.integers(0, 9), names, st.integers(-1, 9), floats, names, st.just(-1)
        ),
        max_size=12,
    )
)
def test_measures(rows: list[Measure]) -> None:
    def look(trace: Trace) -> None:
        written = sorted(rows, key=lambda row: row.step)
        assert len(trace.measures()) == len(written)
        assert all(map(equal, trace.measures(), written))
        for name in {row.name for row in rows}:
            assert all(map(equal, trace.measures(name=name), [row for row in written if row.name == name]))

    round_trip(lambda writer: writer.measures(rows), look, in_memory=True)


maybe = st.none() | floats
step_rows = st.builds(StepRow, steps, floats, maybe, maybe, maybe, maybe, st.booleans(), st.just(-1))


@calm
@given(st.lists(step_rows, max_size=12, unique_by=lambda row: row.step))
def test_steps(rows: list[StepRow]) -> None:
    def fill(writer: TraceWriter) -> None:
        for row in rows:
            writer.step(row)

    def look(trace: Trace) -> None:
        written = tuple(sorted(rows, key=lambda row: row.step))
        assert equal(trace.steps(), written)
        arrays = trace.step_arrays()
        assert list(arrays["step"]) == [row.step for row in written]
        unknown = [math.nan if row.loss is None else row.loss for row in written]
        np.testing.assert_array_equal(arrays["loss"], np.array(unknown, dtype=np.float64))
        assert list(arrays["skipped"]) == [row.skipped for row in written]

    round_trip(fill, look, in_memory=True)


ids = st.lists(st.integers(0, 2**40), max_size=16).map(tuple)
detail = st.dictionaries(
    names, st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | names, max_size=4
)
kinds = st.sampled_from(["non-finite", "tool-failure", "finding", "note"])
named = st.none() | names
events = st.builds(Event, steps, kinds, named, names, st.integers(0, 9), named, named, ids, ids, ids, names, detail)


@calm
@given(st.lists(events, max_size=8))
def test_events(written: list[Event]) -> None:
    def fill(writer: TraceWriter) -> None:
        for event in written:
            writer.event(event)

    def look(trace: Trace) -> None:
        assert trace.events() == tuple(sorted(written, key=lambda event: event.step))
        assert trace.events("note") == tuple(event for event in trace.events() if event.kind == "note")

    round_trip(fill, look, in_memory=True)


facts = st.builds(
    LayerFacts,
    name=names,
    kind=names,
    position=st.integers(0, 99),
    attention=st.booleans(),
    in_channels=st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.none() | st.integers(1, 8),
    dropout=st.none() | st.floats(0, 1),
    norm_before=st.none() | names,
    options=st.dictionaries(names, st.none() | st.booleans() | names, max_size=3),
    source_file=st.none() | names,
)


@calm
@given(
    st.lists(facts, max_size=6, unique_by=lambda f: f.name),
    st.lists(st.builds(Blind, names, names, names), max_size=6, unique_by=lambda b: (b.layer, b.site)),
    st.dictionaries(names.map("user.{}".format), names, max_size=4),
)
def test_facts(layers: list[LayerFacts], blind: list[Blind], meta: dict[str, str]) -> None:
    def fill(writer: TraceWriter) -> None:
        for layer in layers:
            writer.layer(layer)
        for site in blind:
            writer.blind(site)
        for key, value in meta.items():
            writer.meta(key, value)

    def look(trace: Trace) -> None:
        assert set(trace.layers()) == set(layers)
        assert [layer.position for layer in trace.layers()] == sorted(layer.position for layer in layers)
        assert set(trace.blind()) == set(blind)
        assert {key: value for key, value in trace.meta.items() if key.startswith("user.")} == meta

    round_trip(fill, look, in_memory=True)


def test_filters_narrow_by_every_part_of_the_key() -> None:
    all_keys = [
        SeriesKey(layer, mode, call, site)
        for layer in ("a", "b")
        for mode in ("train", "eval")
        for call in (0, 1)
        for site in ("score", "output")
    ]
    with TraceWriter(None) as writer:
        writer.sites(1, [writer.series(key) for key in all_keys], np.ones((16, 5)))
        with writer.read() as trace:
            assert set(trace.sites()) == set(all_keys)
            assert set(trace.sites(layer="a")) == {key for key in all_keys if key.layer == "a"}
            assert set(trace.sites(mode="eval", site="score")) == {
                k for k in all_keys if k.mode == "eval" and k.site == "score"
            }
            assert set(trace.sites(call=1)) == {key for key in all_keys if key.call == 1}
            assert trace.sites(layer="c") == {}


def test_a_series_has_one_id(path: Path) -> None:
    with TraceWriter(path) as writer:
        first = writer.series(SeriesKey("a", "train", 0, "score"))
        assert writer.series(SeriesKey("a", "train", 0, "score")) == first
        assert writer.series(SeriesKey("a", "train", 1, "score")) != first


def test_upserts_replace() -> None:
    with TraceWriter(None) as writer:
        for heads in (1, 2):
            writer.layer(LayerFacts("gnn1", "TransformerConv", 0, True, heads=heads))
            writer.meta("who", str(heads))
            writer.step(StepRow(7, 0.0, float(heads), None, None, None))
            with writer.read() as trace:
                assert [layer.heads for layer in trace.layers()] == [heads]
                assert trace.meta["who"] == str(heads)
                assert [row.loss for row in trace.steps()] == [heads]


def test_rows_of_one_step_are_pooled() -> None:
    parts = [[(-1.0, 5.0, 3.0, 10, 0)], [(-2.0, 4.0, 1.0, 30, 2)], [(0.0, 9.0, 2.0, 0, -1)]]
    for apart in (True, False):
        with TraceWriter(None) as writer:
            series = writer.series(SeriesKey("a", "train", 0, "score"))
            for rows in parts:
                writer.sites(3, [series], rows)
                if apart:
                    writer.flush()
            with writer.read() as trace:
                (row,) = trace.sites()[SeriesKey("a", "train", 0, "score")]
        assert (row["minimum"], row["maximum"], row["count"], row["non_finite"], row["span"]) == (-2.0, 9.0, 40, -1, 1)
        assert row["rms"] == pytest.approx(math.sqrt((9 * 10 + 1 * 30) / 40))


def test_names_that_are_no_unicode_are_escaped() -> None:
    with TraceWriter(None) as writer:
        writer.layer(LayerFacts("bad\ud800", "TransformerConv", 0, True))
        writer.sites(1, [writer.series(SeriesKey("bad\ud800", "train", 0, "score"))], [(0.0, 1.0, 1.0, 1, 0)])
        with writer.read() as trace:
            assert [layer.name for layer in trace.layers()] == ["bad\ud800"]
            assert [key.layer for key in trace.sites()] == ["bad\\ud800"]
    assert writer.failure is None


def test_malformed_rows_cost_only_themselves() -> None:
    with TraceWriter(None) as writer:
        series = writer.series(SeriesKey("a", "train", 0, "score"))
        writer.sites(1, [series], [(0.0, 1.0, 1.0, 1, 0)])
        writer.sites(2, [series, 2], [(0.0, 1.0, 1.0, 1, 0)])
        writer.sites(3, [series], "text")  # type: ignore[arg-type]
        writer.sites(4, [series], [(0.0, 1.0, 1.0, math.nan, math.inf)])  # type: ignore[list-item]
        writer.measures([Measure(1, "a", "train", 0, "loss", -1, "x"), Measure(1, "a", "train", 0, "loss", -1, 2.0)])  # type: ignore[arg-type]
        writer.step(None)  # type: ignore[arg-type]
        writer.step(StepRow(1, 0.0, 1.0, None, None, None))
        circle: dict[str, Any] = {}
        circle["self"] = circle
        writer.event(Event(1, "note", detail=circle))
        writer.event(Event(1, "note", message="good"))
        writer.flush()
        writer.flush()
        with writer.read() as trace:
            (array,) = trace.sites().values()
            assert [tuple(row) for row in array[["step", "count", "non_finite"]]] == [(1, 1, 0), (4, 0, -1)]
            assert [row.value for row in trace.measures()] == [2.0]
            assert [row.loss for row in trace.steps()] == [1.0]
            assert [event.message for event in trace.events()] == ["good"]
            assert int(trace.meta["malformed.rows"]) >= 6
    assert writer.failure is None
