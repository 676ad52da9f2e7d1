"""Comparisons: factors, directions, limits, and states that do not belong together."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import examples
import gnnstab
from gnnstab.compare import Change, compare, render
from gnnstab.errors import NothingEvaluable, UsageError
from gnnstab.records import SIGNALS, Diagnosis, Event, LayerFacts, Measure, Signal
from gnnstab.trace import TraceWriter
from models.stacks import Stack


def state(**values: float) -> Diagnosis:
    """One layer, one head; ``attention_entropy=0.5`` is the signal attention.entropy."""
    signals = tuple(Signal(name.replace("_", ".", 1), value, "gnn.a", 1) for name, value in values.items())
    return replace(examples.clean(), signals=signals)


def only(comparison) -> Change:
    (change,) = comparison.changes
    return change


@pytest.mark.parametrize(
    ("signal", "before", "after", "growth"),
    [
        ("score_max_abs", 10.0, 80.0, 8.0),
        ("score_max_abs", 80.0, 10.0, 0.125),
        ("attention_entropy", 0.8, 0.2, 4.0),
        ("attention_entropy", 0.2, 0.8, 0.25),
        ("attention_entropy", 0.5, 0.5, 1.0),
        ("attention_one_hot_share", 0.0, 0.4, math.inf),
        ("attention_one_hot_share", 0.0, 0.0, 1.0),
        ("score_max_abs", 10.0, math.nan, math.inf),
        ("score_max_abs", math.inf, 10.0, 0.0),
        ("score_max_abs", math.nan, math.nan, 1.0),
    ],
)
def test_growth_is_towards_danger(signal: str, before: float, after: float, growth: float) -> None:
    assert only(compare(state(**{signal: before}), state(**{signal: after}))).growth == pytest.approx(growth)


@pytest.mark.parametrize("spoilt", ["one", "all", "run"])
def test_numbers_that_became_nan_are_growth(spoilt: str, tmp_path: Path) -> None:
    if spoilt == "run":
        runs = [tmp_path / f"{name}.gnnstab" for name in ("before", "after")]
        for path in runs:
            with TraceWriter(path) as writer:
                writer.layer(LayerFacts("convs.0", "TransformerConv", 0, True))
                writer.measures([Measure(1, "convs.0", "train", 0, "attention.entropy", -1, 0.9)])
                if path is runs[1]:
                    writer.event(Event(1, "non-finite", layer="convs.0", stage="score"))
    else:
        runs = [tmp_path / f"{name}.pt" for name in ("before", "after")]
        state = Stack(2).state_dict()
        torch.save(state, runs[0])
        bad = [name for name in state if spoilt == "all" or name == "convs.0.lin_key.weight"]
        torch.save({**state, **{name: state[name] * math.nan for name in bad}}, runs[1])
    before, after = (gnnstab.diagnose(path) for path in runs)
    comparison = compare(before, after)
    worst = comparison.grown(2)[0]
    assert (worst.layer, worst.growth) == ("convs.0", math.inf)
    text = render(comparison, factor=2)
    assert text.startswith("GREW") and "at convs.0" in text.splitlines()[0]
    assert not compare(after, after).grown(2) and not compare(after, before).grown(2)
    json.loads(render(comparison, "json"), parse_constant=pytest.fail)


def test_small_numbers_may_grow_in_peace() -> None:
    comparison = compare(state(attention_one_hot_share=0.001), state(attention_one_hot_share=0.01))
    assert only(comparison).growth == pytest.approx(10)
    assert comparison.grown(2) == ()


@pytest.mark.parametrize(
    ("before", "after", "approach"),
    [
        (0.85, 0.60, 0.5),
        (0.85, 0.35, 1.0),
        (0.85, 0.10, 1.5),
        (0.85, 0.95, 0.0),
        (0.30, 0.20, 1.0),
        (0.85, math.nan, 1.0),
    ],
)
def test_approach_to_the_limit_of_the_rule(before: float, after: float, approach: float) -> None:
    change = only(compare(state(attention_entropy=before), state(attention_entropy=after)))
    assert (change.rule, change.limit) == ("GS301", 0.35)
    assert change.approach == pytest.approx(approach)


def test_limits_follow_the_configuration() -> None:
    a, b = state(attention_entropy=0.9), state(attention_entropy=0.8)
    assert only(compare(a, b, thresholds={"GS301": {"warn_entropy": 0.7}})).approach == pytest.approx(0.5)


def test_the_strongest_growth_that_counts_comes_first() -> None:
    a = state(score_max_abs=10.0, attention_entropy=0.9, attention_one_hot_share=0.001)
    b = state(score_max_abs=20.0, attention_entropy=0.3, attention_one_hot_share=0.02)
    ranked = [change.signal for change in compare(a, b).changes]
    assert ranked == ["attention.entropy", "score.max_abs", "attention.one_hot_share"]


def test_the_latest_step_counts() -> None:
    first, *later = (Signal("score.max_abs", float(s), "gnn.a", 0, s) for s in (30, 10, 20))
    before, after = (replace(examples.clean(), signals=signals) for signals in ((first,), (first, *later)))
    assert only(compare(before, after)).after == 30.0
    other = replace(after, signals=(*after.signals, Signal("score.max_abs", 7.0, "gnn.a", 1)))
    assert only(compare(state(score_max_abs=1.0), other)).after == 7.0


def test_findings_that_came_and_went() -> None:
    comparison = compare(examples.clean(), examples.one_finding())
    assert [f.code for f in comparison.new] == ["GS301"]
    assert compare(examples.one_finding(), examples.clean()).gone == comparison.new


def test_states_without_a_common_number_are_refused() -> None:
    with pytest.raises(NothingEvaluable, match="no layer and signal in common"):
        compare(examples.clean(), examples.many_findings())


def test_the_same_state_is_steady() -> None:
    comparison = compare(examples.many_findings(), examples.many_findings())
    assert comparison.grown(1.01) == ()
    assert render(comparison).startswith("STEADY")


def test_text_names_layer_head_factor_and_rule() -> None:
    text = render(compare(examples.clean(), examples.one_finding()), factor=2.0)
    assert text.startswith("GREW")
    assert all(words in text for words in ("gnn_base.gnn.gnn1", "GS301", "New findings", "attention entropy"))
    assert not [name for name in SIGNALS if "." in name and name in text], "a table for people has words for signals"
    assert max(map(len, text.splitlines())) <= 80


def test_json_is_strict_and_complete() -> None:
    comparison = compare(examples.clean(), examples.nan_values())
    document = json.loads(render(comparison, "json"), parse_constant=lambda name: pytest.fail(name))
    assert len(document["changes"]) == len(comparison.changes)
    assert document["changes"][0]["growth"] == "inf"
    with pytest.raises(UsageError, match="unknown format"):
        render(comparison, "html")


def test_hostile_names_are_text() -> None:
    text = render(compare(examples.hostile_names(), examples.hostile_names()), verbose=True)
    assert all(c == "\n" or c.isprintable() for c in text)


def went_through(end: float, worst: float, step: int = 12) -> Diagnosis:
    """A run whose largest score at its end is ``end`` and was ``worst`` at ``step``."""
    detail = {"worst": worst, "worst_step": step}
    signal = Signal("score.max_abs", end, "gnn.a", None, 149, "training", detail)
    return replace(examples.clean(), signals=(signal,))


def test_runs_that_end_alike_are_not_steady_when_one_of_them_exploded_on_its_way() -> None:
    comparison = compare(went_through(1.35, 9.0), went_through(1.35, 1.5e7))
    (grown,) = comparison.grown(1.1)
    assert grown.extreme
    assert (grown.before, grown.after) == (9.0, 1.5e7)
    text = render(comparison)
    assert text.startswith("GREW")
    assert "largest |score| (worst)" in text
    assert "score.max_abs (worst)" in render(comparison, verbose=True)


def test_runs_whose_worst_values_scatter_as_single_steps_do_are_steady() -> None:
    comparison = compare(went_through(10.0, 20.0), went_through(10.2, 35.0))
    assert render(comparison).startswith("STEADY")


def seen(model: nn.Module, folder: Path) -> Diagnosis:
    torch.save(model.state_dict(), folder / "file.pt")
    return gnnstab.diagnose(folder / "file.pt")


@pytest.mark.parametrize("part", ["norms.1.weight", "convs.0.lin_query.bias", "convs.1.lin_value.weight"])
def test_every_weight_of_a_file_is_compared_by_its_own_size(part: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stack(2, heads=2, concat=False, pre_norm=True)
    model.convs[0].lin_query.bias.data.fill_(0.3)
    before = seen(model, tmp_path)
    model.get_parameter(part).data.mul_(100)
    grown = {change.layer: change.growth for change in compare(before, seen(model, tmp_path)).grown(2.0)}
    own = part if part.startswith("convs") else part.removesuffix(".weight")
    assert grown[own] == pytest.approx(100, rel=0.01)


def test_biases_and_gains_that_leave_zero_have_not_grown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stack(2, heads=2, concat=False, pre_norm=True)
    leaving = [model.norms[0].weight.data, model.convs[0].lin_key.bias.data]
    for tensor in leaving:
        tensor.zero_()
    before = seen(model, tmp_path)
    for tensor in leaving:
        tensor.fill_(0.2)
    assert compare(before, seen(model, tmp_path)).grown(2.0) == ()


def test_a_layer_that_is_gone_is_not_steady() -> None:
    whole = examples.clean()
    comparison = compare(whole, replace(whole, layers=whole.layers[:-1]))
    text = render(comparison, width=200)
    assert text.startswith("INCOMPLETE") and "1 layer is missing in the later state" in text
    assert render(compare(replace(whole, layers=whole.layers[:-1]), whole)).startswith("STEADY")
