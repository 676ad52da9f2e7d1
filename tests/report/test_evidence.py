"""What page and figures draw is what the diagnosis holds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.nn import GATv2Conv

import gallery
import gnnstab
from gnnstab.records import Coverage, Diagnosis, Finding, LayerFacts, Series, Signal, Target
from gnnstab.report._extremes import before_it_broke
from gnnstab.report.distribution import distribution
from gnnstab.report.evidence import Evidence, Limit, thin


def holding(*signals: Signal, findings: tuple[Finding, ...] = (), series: tuple[Series, ...] = ()) -> Evidence:
    layers = tuple(LayerFacts(n, "TransformerConv", i, True) for i, n in enumerate(("net.a", "net.b")))
    return Evidence(
        Diagnosis(Target("model", "m"), Coverage(2, 2), (), findings, (), layers=layers, signals=signals, series=series)
    )


def test_parameters_count_towards_the_layer_that_owns_them() -> None:
    evidence = holding(Signal("weight.rms", 0.2, "net.a.lin_key.weight"), Signal("weight.rms", 0.3, "other.weight"))
    assert evidence.layers == ("net.a", "net.b", "other.weight")
    assert evidence.owner("net.a.lin_key.weight") == "net.a"
    assert evidence.owner("net.ab") == ""
    assert [s.value for s in evidence.numbers("net.a")] == [0.2]


def test_several_parameters_of_one_layer_are_all_shown() -> None:
    both = [Signal("weight.rms", v, "net.a", detail={"parameter": p}) for v, p in ((1.0, "net.a.q"), (2.0, "net.a.k"))]
    assert {s.value for s in holding(*both).numbers("net.a")} == {1.0, 2.0}


def test_the_latest_measurement_on_real_input_is_shown() -> None:
    name = "attention.entropy"
    real = [Signal(name, value, "net.a", step=step, source="training") for value, step in ((0.9, 0), (0.2, 9))]
    assert holding(*real, Signal(name, 0.5, "net.a", step=99, source="synthetic")).value(name, "net.a") == 0.2
    assert holding(Signal(name, 0.5, "net.a", source="synthetic")).value(name, "net.a") == 0.5
    assert math.isnan(holding().value(name, "net.a"))


def test_profile_spans_its_heads() -> None:
    heads = [Signal("attention.entropy", v, "net.b", h) for h, v in enumerate((0.2, 0.6, math.nan))]
    profile = holding(Signal("attention.entropy", 0.4, "net.a"), *heads).profile("attention.entropy")
    assert profile is not None
    assert profile.layers == ("net.a", "net.b")
    np.testing.assert_allclose(profile.values, [0.4, 0.4])
    np.testing.assert_allclose(profile.low, [0.4, 0.2])
    np.testing.assert_allclose(profile.high, [0.4, 0.6])
    assert holding().profile("output.rms") is None


def test_infinite_values_leave_a_gap_in_a_profile() -> None:
    profile = holding(Signal("output.rms", math.inf, "net.a"), Signal("output.rms", 2.0, "net.b")).profile("output.rms")
    assert profile is not None
    assert math.isnan(profile.values[0])
    assert profile.values[1] == 2.0


def finding(signal: str, value: float, threshold: float) -> Finding:
    return Finding("GS999", "x", "", "error", "high", "net.a", None, None, signal, value, threshold, "", "message")


def test_limits_come_from_the_findings_and_from_the_rules() -> None:
    evidence = holding(findings=(finding("attention.entropy", 0.3, 0.4), finding("output.rms", 9.0, 5.0)))
    entropies = [(m.value, m.side) for m in evidence.limits("attention.entropy")]
    assert entropies == [(0.1, "below"), (0.35, "below"), (0.4, "below")]
    assert evidence.limits("output.rms") == (Limit(5.0, "error", "above"),)
    assert evidence.limits("input.rms") == ()
    assert holding(findings=(finding("output.rms", math.nan, math.nan),)).limits("output.rms") == ()


def test_a_limit_is_breached_on_its_unhealthy_side_only() -> None:
    assert Limit(0.35, "warning", "below").breached_by(0.2)
    assert not Limit(0.35, "warning", "below").breached_by(0.5)
    assert Limit(5.0, "error", "above").breached_by(math.inf)
    assert not Limit(5.0, "error", "above").breached_by(math.nan)


def test_heat_lines_up_layers_recorded_at_different_steps() -> None:
    a = Series("score.max_abs", "net.a", None, np.array([0, 2]), np.array([1.0, 3.0]))
    b = Series("score.max_abs", "net.b", None, np.array([1, 2]), np.array([7.0, 8.0]))
    heat = holding(series=(b, a)).heat("score.max_abs")
    assert heat is not None
    assert heat.layers == ("net.a", "net.b")
    assert heat.steps.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(heat.values, [[1.0, np.nan, 3.0], [np.nan, 7.0, 8.0]])
    assert holding().heat("score.max_abs") is None


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "text",
        {},
        {"low": 0, "high": 1},
        {"low": 0, "high": math.nan, "counts": [1, 2]},
        {"low": "a", "high": "b", "counts": [1]},
        {"low": 1, "high": 1, "counts": [5]},
        {"low": 0, "high": 1, "counts": []},
    ],
)
def test_a_broken_histogram_falls_back_to_the_range(broken: object) -> None:
    signals = [Signal("score.min", -3.0, "a", 0, detail={"histogram": broken}), Signal("score.max", 5.0, "a", 0)]
    found = distribution(signals, 0)
    assert found is not None
    assert (found.low, found.high, len(found.edges)) == (-3.0, 5.0, 0)


def test_histogram_before_range() -> None:
    full = {"histogram": {"low": 0.0, "high": 2.0, "counts": [3, 4]}}
    found = distribution([Signal("score.std", 1.0, "a", 0, detail=full), Signal("score.max", 9.0, "a", 0)], 0)
    assert found is not None
    assert (found.low, found.high, found.edges.tolist(), found.counts.tolist()) == (0.0, 2.0, [0, 1, 2], [3, 4])
    assert distribution([Signal("score.max_abs", 4.0, "a")], None).low == -4.0  # type: ignore[union-attr]
    assert distribution([Signal("score.max_abs", math.nan, "a")], None) is None


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=400), most=st.integers(2, 50))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    ys = np.array(values)
    xs, kept = thin(np.arange(len(ys), dtype=float), ys, most)
    assert len(xs) <= max(most + 2, 2)
    assert xs[0] == 0
    assert xs[-1] == len(ys) - 1
    finite = ys[np.isfinite(ys)]
    if len(finite):
        assert np.nanmin(kept[np.isfinite(kept)]) == finite.min()
        assert np.nanmax(kept[np.isfinite(kept)]) == finite.max()


def test_before_after_only_where_both_were_measured() -> None:
    changes = Evidence(gallery.run()).before_after()
    assert [c.fix.fix for c in changes] == ["beta", "qk-clip", "mean-aggregation"]
    assert {m.value for m in changes[0].limits} == {0.1, 0.35}


def test_numbers_of_the_layers_name_their_step_where_later_ones_are_not_finite() -> None:
    torch.manual_seed(0)
    model, edges = GATv2Conv(4, 1), torch.randint(0, 8, (2, 32))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(10):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4) * (math.nan if step == 7 else 1), edges).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    diagnosis = monitor.diagnose()
    assert before_it_broke(diagnosis, ["attention.entropy"]).startswith("Of step 0, the last full measurement")
    assert before_it_broke(replace(diagnosis, events=()), ["attention.entropy"]) == ""
