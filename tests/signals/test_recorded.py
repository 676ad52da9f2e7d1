"""From a trace to signals: which rows count, which mode, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gnnstab.records import LayerFacts, Measure, SeriesKey, Signal, Signals, StepRow
from gnnstab.rules import run
from gnnstab.signals import from_trace, join
from gnnstab.trace import Trace, TraceWriter

A, B = LayerFacts("a", "TransformerConv", 0, True), LayerFacts("b", "TransformerConv", 1, True)


def written(
    meta: dict[str, str] | None = None,
    layers: Sequence[LayerFacts] = (A, B),
    measures: Sequence[Measure] = (),
    steps: Sequence[StepRow] = (),
    sites: dict[SeriesKey, list[tuple[int, float]]] | None = None,
    extremes: dict[SeriesKey, list[tuple[int, float, float]]] | None = None,
) -> Trace:
    """A trace in memory; ``sites`` gives (step, rms) per series, ``extremes`` (step, minimum, maximum)."""
    writer = TraceWriter(None, meta=meta or {})
    for facts in layers:
        writer.layer(facts)
    writer.measures(measures)
    for row in steps:
        writer.step(row)
    for key, rows in (sites or {}).items():
        for step, rms in rows:
            writer.sites(step, [writer.series(key)], [(-rms, rms, rms, 10, 0)])
    for key, points in (extremes or {}).items():
        for step, low, high in points:
            writer.sites(step, [writer.series(key)], [(low, high, max(abs(low), abs(high)), 10, 0)])
    writer.close()
    return writer.read()


def measure(step: int, name: str, value: float, layer: str = "a", mode: str = "train", **more: Any) -> Measure:
    return Measure(step, layer, mode, more.get("call", 0), name, more.get("head", -1), value)


def one(signals: Signals, name: str, **narrow: Any) -> Signal:
    found = signals.find(name, **narrow)
    assert len(found) == 1
    return found[0]


def test_the_end_of_a_run_is_the_median_of_its_last_finite_measurements() -> None:
    values = [0.9, 0.8, 0.7, 0.6, 0.1, 0.5, math.nan, math.nan]
    signals = from_trace(written(measures=[measure(50 * i, "attention.entropy", v) for i, v in enumerate(values)]))
    signal = one(signals, "attention.entropy")
    assert signal.value == 0.5, "the median of .6, .1 and .5, the later half of what is finite"
    assert (signal.layer, signal.head, signal.step, signal.source) == ("a", None, 350, "training")
    assert signals.kind == "trace"


def test_the_mode_of_the_update_is_judged_and_named() -> None:
    rows = [measure(0, "attention.entropy", 0.2, mode="eval"), measure(0, "attention.entropy", 0.7, mode="train")]
    signal = one(from_trace(written(measures=rows)), "attention.entropy")
    assert signal.value == 0.7
    assert (signal.detail["mode"], signal.detail["other_modes"]) == ("train", ["eval"])
    assert (signal.detail["worst"], signal.detail["worst_step"], signal.detail["measurements"]) == (0.7, 0, 1)


def test_every_call_of_a_shared_layer_is_judged() -> None:
    rows = [measure(0, "attention.entropy", 0.9), measure(0, "attention.entropy", 0.2, call=1)]
    found = from_trace(written(measures=rows)).find("attention.entropy")
    assert [(s.value, s.detail.get("call")) for s in found] == [(0.9, None), (0.2, 1)]


def test_a_signal_of_an_older_trace_is_read_under_its_name_of_today_and_one_that_is_no_more_is_left_out() -> None:
    rows = [measure(0, "optimizer.stack_share", 0.9, layer=""), measure(0, "optimizer.standardised", 4.0, layer="")]
    signals = from_trace(written(measures=rows))
    signal = one(signals, "optimizer.undone")
    assert (signal.value, signal.layer, signal.detail["worst"]) == (0.9, None, 0.9)
    assert not [s for s in signals.values if s.name in ("optimizer.stack_share", "optimizer.standardised")]


def test_what_is_undefined_is_missing_with_a_reason() -> None:
    signals = from_trace(written(measures=[measure(0, "smoothness.relative", math.nan)]))
    assert not signals.find("smoothness.relative")
    assert "not defined on this data" in signals.why_missing("smoothness.relative")


def test_one_forward_of_a_batch_has_no_steps() -> None:
    trace = written(
        {"source": "batch", "precision": "bf16"}, measures=[measure(0, "attention.entropy", 0.5, mode="eval-grad")]
    )
    signals = from_trace(trace)
    assert signals.kind == "model"
    assert one(signals, "attention.entropy").step is None
    assert signals.context["precision"] == "bf16"
    assert not signals.series


def test_generated_graphs_stay_apart_by_in_degree_and_tell_nothing_about_settings() -> None:
    rows = [
        measure(i, name, v, mode="eval")
        for i, d in enumerate((4, 10))
        for name, v in (("degree.median", d), ("attention.entropy", 1 / d))
    ]
    rebuilt = LayerFacts.of("a", "TransformerConv", 0, True, dropout=0.0, root_weight=True)
    signals = from_trace(written({"source": "synthetic"}, layers=[rebuilt], measures=rows))
    assert {s.detail["in_degree"]: s.value for s in signals.find("attention.entropy")} == {4: 0.25, 10: 0.1}
    assert {s.source for s in signals.values} == {"synthetic"}
    assert signals.layers[0].dropout is None
    assert signals.layers[0].get("root_weight") is None


def test_gradient_ratio_and_slope_over_depth() -> None:
    layers = [LayerFacts(f"l{i}", "TransformerConv", i, True) for i in range(5)]
    sites = {SeriesKey(f"l{i}", "train", 0, "grad_input"): [(0, 10.0 ** (i - 4))] for i in range(5)}
    signals = from_trace(written(layers=layers, sites=sites))
    assert one(signals, "gradient.ratio").value == pytest.approx(1e-4)
    assert one(signals, "gradient.slope").value == pytest.approx(-math.log(10))
    assert one(signals, "gradient.ratio").detail == {"mode": "train", "first": "l0", "last": "l4", "layers": 5}


@pytest.mark.parametrize(
    ("sizes", "ratio"),
    [([0.0, 1.0], [0.0]), ([0.0, 1.0, 0.0], []), ([6.0, 2.0, 0.0], [3.0]), ([6.0, 0.0], [])],
    ids=["became zero", "zero at both ends", "a last layer that begins at zero", "nothing to compare with"],
)
def test_the_gradient_ratio_where_a_gradient_is_zero(sizes: list[float], ratio: list[float]) -> None:
    layers = [LayerFacts(f"l{i}", "TransformerConv", i, True) for i in range(len(sizes))]
    sites = {SeriesKey(f"l{i}", "train", 0, "grad_input"): [(0, size)] for i, size in enumerate(sizes)}
    found = from_trace(written(layers=layers, sites=sites)).find("gradient.ratio")
    assert [s.value for s in found] == ratio


def test_no_gradient_is_missing_not_healthy() -> None:
    layers = [LayerFacts(f"l{i}", "TransformerConv", i, True) for i in range(8)]
    signals = from_trace(written(layers=layers))
    status = next(s for s in run(signals).statuses if s.code == "GS203")
    assert status.status == "not-evaluable"
    assert "backward" in status.reason


def test_early_and_late_updates_and_silent_parameters() -> None:
    weight, change = (
        SeriesKey("a.lin_key.weight", "train", 0, "weight"),
        SeriesKey("a.lin_key.weight", "train", 0, "update"),
    )
    sites = {
        weight: [(50 * i, 1.0 + i) for i in range(10)],
        change: [(50 * i, 0.2 * (1.0 + i) if i < 3 else 0.001 * (1.0 + i)) for i in range(10)],
        SeriesKey("a.lin_key.weight", "train", 0, "weight_grad"): [(0, 1.0)],
        SeriesKey("b.lin_edge.weight", "train", 0, "weight"): [(0, 1.0)],
    }
    signals = from_trace(written(sites=sites))
    ratios = {s.detail["early"]: s.value for s in signals.find("update.ratio", layer="a")}
    assert ratios[True] == pytest.approx(0.2)
    assert ratios[False] == pytest.approx(0.001)
    silent = one(signals, "optimizer.never_updated")
    assert silent.value == 1
    assert silent.detail["parameters"] == ["b.lin_edge.weight"]


def steps(losses: Sequence[float], norms: Sequence[float], skipped: Sequence[int] = ()) -> list[StepRow]:
    return [
        StepRow(i, i * 0.1, loss, 1e-3, None, norm, i in skipped)
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]


def test_loss_and_spikes() -> None:
    norms = [1.0] * 60
    norms[50] = 50.0
    signals = from_trace(written(steps=steps([*np.linspace(5, 1, 20), *[1.0] * 40], norms)))
    loss, spike = one(signals, "loss"), one(signals, "gradient.spike")
    assert loss.value == pytest.approx(1.0, abs=0.2)
    assert loss.detail["start"] > 4.5 and loss.detail["first"] == 5.0
    assert (spike.value, spike.step) == (50.0, 50)
    assert spike.detail == {"count": 1, "recovered": True, "above_start": True}
    falling = one(from_trace(written(steps=steps(list(np.linspace(5, 1, 60)), norms))), "gradient.spike")
    assert falling.detail["count"] == 0


def test_a_norm_that_stays_high_has_not_recovered() -> None:
    signals = from_trace(written(steps=steps([1.0] * 60, [1.0] * 40 + [30.0] * 20)))
    assert one(signals, "gradient.spike").detail["recovered"] is False


def test_a_jump_below_the_first_gradients_is_no_spike() -> None:
    norms = [100.0 * 0.95**i for i in range(100)]
    norms[80] *= 20
    assert norms[80] < norms[0]
    spike = one(from_trace(written(steps=steps([1.0] * 100, norms))), "gradient.spike")
    assert spike.value > 5
    assert spike.detail == {"count": 0, "recovered": True, "above_start": False}


def test_the_first_steps_and_skipped_steps_are_no_spikes() -> None:
    norms = [500.0, 80.0, *[1.0] * 40, 900.0, *[1.0] * 10]
    signals = from_trace(written(steps=steps([1.0] * len(norms), norms, skipped=[42])))
    assert one(signals, "gradient.spike").value < 2


def test_growth_of_the_scores() -> None:
    points = [(i, -math.exp(0.03 * i), 0.5) for i in range(100)]
    signals = from_trace(written(extremes={SeriesKey("a", "train", 0, "score"): points}))
    growth = one(signals, "score.growth", layer="a")
    assert growth.value == pytest.approx(math.expm1(0.03), rel=1e-6)
    series = signals.over_steps("score.max_abs", layer="a")[0]
    assert series.values[-1] == pytest.approx(math.exp(0.03 * 99))


def test_a_long_series_is_thinned_and_keeps_its_peak() -> None:
    points = [(i, 0.0, 1e6 if i == 3333 else 1.0) for i in range(5000)]
    series = from_trace(written(extremes={SeriesKey("a", "train", 0, "score"): points})).over_steps("score.max_abs")[0]
    assert len(series.steps) == 1000
    assert series.values.max() == 1e6
    assert 3333 - 8 < series.steps[series.values.argmax()] <= 3333, "the old steps are read eight at a time"


def test_train_and_eval_outputs_apart() -> None:
    sites = {SeriesKey("a", "train", 0, "output"): [(0, 1.1)], SeriesKey("a", "eval", 0, "output"): [(0, 1.0)]}
    assert one(from_trace(written(sites=sites)), "output.train_eval_difference").value == pytest.approx(0.1)


def test_a_join_fills_facts_and_keeps_sources_apart() -> None:
    dynamic = Signals("model", (A,), (Signal("attention.entropy", 0.5, "a"),), missing={"gain.": "no weights"})
    static = Signals(
        "checkpoint",
        (LayerFacts("net.a", "TransformerConv", 0, True, heads=3),),
        (Signal("gain.value", 0.6, "net.a", source="weights"),),
        missing={"attention.": "needs a graph", "optimizer.": "no state"},
        context={"trained": True, "layers_expected": 1},
    )
    joined = join(dynamic, static)
    assert joined.kind == "model"
    assert [(layer.name, layer.heads) for layer in joined.layers] == [("a", 3)]
    assert joined.value("gain.value", layer="a") == 0.6
    assert joined.missing == {"optimizer.": "no state"}
    assert joined.context == {"trained": True, "layers_expected": 1}


def test_generated_graphs_leave_a_checkpoint_a_checkpoint() -> None:
    synthetic = from_trace(
        written({"source": "synthetic"}, layers=[A], measures=[measure(0, "attention.entropy", 0.5)])
    )
    static = Signals(
        "checkpoint",
        (LayerFacts.of("a", "TransformerConv", 0, True, beta=False),),
        missing={"feature.": "no features in a file"},
    )
    joined = join(synthetic, static)
    assert joined.kind == "checkpoint"
    assert joined.layers[0].get("beta") is False
    assert joined.why_missing("feature.rms") == "no features in a file"


def test_the_generalisation_gap_compares_each_validation_with_the_training_before_it() -> None:
    losses = [10.0] * 30 + [1.0] * 30
    given = [measure(at, "loss.validation", value, "", "eval") for at, value in ((29, 11.0), (49, 2.0), (59, 3.0))]
    signals = from_trace(written(steps=steps(losses, [1.0] * 60), measures=given))
    gap = one(signals, "loss.generalisation_gap")
    assert (gap.value, gap.step) == (pytest.approx(1.0), 59), "gaps are 0.1, 1 and 2"
    assert one(signals, "loss.validation").value == 2.5, "the later half: 2 and 3"


@pytest.mark.parametrize("losses", [[], [-1.0] * 30, [0.0] * 30])
def test_no_gap_without_a_positive_training_loss(losses: list[float]) -> None:
    given = [measure(29, "loss.validation", 2.0, "", "eval")]
    signals = from_trace(written(steps=steps(losses, [1.0] * len(losses)), measures=given))
    assert signals.find("loss.generalisation_gap") == ()
    assert "monitor.validation" in signals.why_missing("loss.generalisation_gap")


@pytest.mark.parametrize(("counts", "told"), [([0.0, 5.0, 0.0], 5.0), ([0.0, 0.0, 0.0], 0.0)])
def test_one_batch_of_several_with_a_nan_is_told(counts: list[float], told: float) -> None:
    rows = [measure(at, "feature.non_finite", value, "") for at, value in enumerate(counts)]
    assert one(from_trace(written(measures=rows)), "feature.non_finite").value == told
