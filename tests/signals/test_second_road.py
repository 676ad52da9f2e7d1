"""Every number that a run's signals are made of, once more in plain Python, for ordinary, huge, tiny and missing values."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gnnstab.records import LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.signals import from_trace
from gnnstab.signals._window import MOST_POINTS, latest, median, thin
from gnnstab.signals.fitting import log_linear
from gnnstab.signals.optimisation import running_median, spikes, warm_up
from gnnstab.trace import Trace, TraceWriter

anything = st.floats(width=64)
positive = st.floats(1e-30, 1e30)
many = settings(max_examples=60, deadline=None)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12)


@given(st.lists(anything, min_size=1, max_size=40), st.integers(1, 20))
@many
def test_the_end_of_a_series(values: list[float], most: int) -> None:
    finite = [v for v in values if math.isfinite(v)][-most:]
    ordered, n = sorted(finite), len(finite)
    # Halved before they are added, since two of the largest floats have no finite sum.
    expected = ordered[n // 2] / 2 + ordered[(n - 1) // 2] / 2 if finite else math.nan
    assert same(latest(np.array(values), most), expected) or (
        n and math.isclose(expected, ordered[n // 2], abs_tol=1e-320)
    )


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=60), st.integers(1, 30))
@many
def test_running_median(values: list[float], width: int) -> None:
    expected = [statistics.median(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]
    assert np.allclose(
        running_median(np.array(values), width), expected, rtol=1e-12, atol=1e-300
    )  # halves of denormal numbers are rounded
    assert float(median(np.array(values))) == pytest.approx(statistics.median(values), rel=1e-12)


@given(st.lists(st.floats(1e-6, 1e6), min_size=11, max_size=120))
@many
def test_spikes(values: list[float]) -> None:
    (signal,) = spikes(np.arange(len(values)), np.array(values))
    start = statistics.median(values[:10])
    ratios = {i: values[i] / statistics.median(values[max(0, i - 50) : i]) for i in range(10, len(values))}
    sudden: set[int] = set()
    for i, ratio in ratios.items():
        if ratio > 10 and (values[i] > 3 * statistics.median(values[i - 5 : i]) or i - 1 in sudden):
            sudden.add(i)
    large = {i: ratio for i, ratio in ratios.items() if values[i] > start and (ratio <= 10 or i in sudden)}
    assert signal.value == pytest.approx(max((large or ratios).values()), rel=1e-12)
    assert signal.detail["above_start"] == bool(large)
    assert ratios[signal.step] == pytest.approx(signal.value, rel=1e-12)
    above = [i for i, ratio in large.items() if ratio > 10]
    assert signal.detail["count"] == sum(i == 0 or at - above[i - 1] > 10 for i, at in enumerate(above))


def told(values: list[float], rates: list[float] | None = None) -> tuple[bool, int]:
    (signal,) = spikes(
        np.arange(len(values)), np.array(values), warm_up(np.array(rates or [1e-3] * len(values), dtype=float))
    )
    return bool(signal.value > 10 and signal.detail["above_start"]), int(signal.detail["count"])


def test_a_norm_that_rises_slowly_is_no_spike_and_one_that_jumps_as_far_is() -> None:
    slow = [1.1**i for i in range(80)]
    assert told(slow) == (False, 0)
    assert told([1.0] * 40 + [40.0] * 40)[0]
    assert told([1.0] * 40 + [4.0**i for i in range(1, 6)]) == (True, 1)


def test_a_spike_in_the_warm_up_of_the_rate_counts_only_beyond_everything_before() -> None:
    norms = [1.0, 30.0, *[1.0] * 28, 25.0, *[1.0] * 29]
    ramp = [1e-5 * min(i + 1, 40) for i in range(60)]
    assert told(norms) == (True, 1)
    assert told(norms, ramp) == (False, 0)
    assert told([n if n != 25 else 400.0 for n in norms], ramp) == (True, 1)
    assert [warm_up(np.array(r)) for r in ([1.0, 1, 1], [1.0, 2, 3], [1.0, 2, 2], [math.nan, math.nan])] == [0, 3, 2, 0]


@given(st.lists(st.tuples(st.integers(0, 10**6), positive), min_size=4, max_size=60, unique_by=lambda point: point[0]))
@many
def test_growth_is_the_slope_of_the_logarithms(points: list[tuple[int, float]]) -> None:
    steps, values = (list(column) for column in zip(*sorted(points), strict=True))
    fitted = log_linear(steps, values)
    assert fitted is not None
    expected = statistics.linear_regression(steps, [math.log(v) for v in values]).slope
    assert fitted.slope == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.integers(1, 5 * MOST_POINTS), st.integers(0, 2**32), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_thinned_series_keeps_its_extremes_and_its_order(n: int, seed: int, lowest: bool) -> None:
    values = np.random.default_rng(seed).standard_normal(n)
    values[:: max(1, n // 7)] = np.nan
    at, kept = thin(np.arange(n) * 3, values, lowest=lowest)
    assert len(at) == min(n, MOST_POINTS)
    assert (np.diff(at) > 0).all()
    assert all(same(value, values[step // 3]) for step, value in zip(at, kept, strict=True))
    if np.isfinite(values).any():
        assert (np.nanmin if lowest else np.nanmax)(kept) == (np.nanmin if lowest else np.nanmax)(values)


def trace(sizes: list[float], site: str = "grad_input") -> Trace:
    """One step of a network whose attention layers have these RMS at a site."""
    writer = TraceWriter(None)
    for i, size in enumerate(sizes):
        writer.layer(LayerFacts(f"conv{i}", "TransformerConv", i, True))
        bad = 0 if math.isfinite(size) else 1
        writer.sites(0, [writer.series(SeriesKey(f"conv{i}", "train", 0, site))], [(-size, size, size, 10, bad)])
    writer.step(StepRow(0, 0.0, 1.0, 1e-3, None, 1.0))
    writer.close()
    return writer.read()


@given(st.lists(positive, min_size=2, max_size=12), st.floats(1e-5, 1e5))
@many
def test_gradients_over_depth_and_their_scaling(sizes: list[float], factor: float) -> None:
    signals, scaled = from_trace(trace(sizes)), from_trace(trace([factor * size for size in sizes]))
    assert signals.value("gradient.ratio") == pytest.approx(sizes[0] / sizes[-1], rel=1e-9)
    fitted = statistics.linear_regression(range(len(sizes)), [math.log(size) for size in sizes]).slope
    assert signals.value("gradient.slope") == pytest.approx(-fitted, rel=1e-6, abs=1e-9)
    for name in ("gradient.ratio", "gradient.slope"):
        assert scaled.value(name) == pytest.approx(signals.value(name), rel=1e-6, abs=1e-9)
    assert scaled.value("gradient.input_rms", layer="conv1") == pytest.approx(factor * sizes[1], rel=1e-12)


@given(st.lists(st.sampled_from([math.nan, math.inf]), min_size=2, max_size=5))
@settings(max_examples=10, deadline=None)
def test_gradients_that_are_nowhere_finite_give_no_number(sizes: list[float]) -> None:
    signals = from_trace(trace(sizes))
    assert signals.find("gradient.ratio") == signals.find("gradient.slope") == ()
    assert signals.why_missing("gradient.ratio")


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(1e-3, 1e3)), min_size=1, max_size=8, unique_by=lambda one: one[0]),
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40),
)
@many
def test_generalisation_gap(validations: list[tuple[int, float]], losses: list[float]) -> None:
    writer = TraceWriter(None)
    for step, loss in enumerate(losses):
        writer.step(StepRow(step, 0.0, loss, None, None, None))
    given_at = sorted(validations)
    writer.measures(Measure(step, "", "eval", 0, "loss.validation", -1, value) for step, value in given_at)
    writer.close()
    gaps = [value / statistics.median(losses[: step + 1][-20:]) - 1 for step, value in given_at[-3:]]
    assume(gaps)
    assert from_trace(writer.read()).value("loss.generalisation_gap") == pytest.approx(
        statistics.median(gaps), rel=1e-9, abs=1e-12
    )
