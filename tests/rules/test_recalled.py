"""Live findings stay in the trace and in every later diagnosis, however calm the run has become since."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gnnstab
from gnnstab.records import Event, Finding, LayerFacts, Series, Signal, Signals
from gnnstab.report import render
from gnnstab.rules.engine import Override, run
from gnnstab.rules.gs603_gradient_spike import GradientSpike
from gnnstab.rules.recalled import as_event, findings_in, joined, settled
from gnnstab.rules.run_losses import trained_well
from models.convnets import Stack, graph

SPIKE = GradientSpike().finding(
    "at step 12 the gradient norm is 40 times its running median",
    severity="warning",
    limit=10.0,
    name="gradient.spike",
    value=40.0,
    step=12,
    unit="× running median",
)


def trained(path: Path, *, burst: bool) -> list[Finding]:
    """60 small steps; in the middle of the burst one the weights are blown up for five steps and put back."""
    torch.manual_seed(0)
    model, args = Stack(2), graph()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    seen: list[Finding] = []
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, on_finding=seen.append) as monitor:
        for step in range(60):
            if burst and step == 30:
                kept = [p.detach().clone() for p in model.parameters()]
                with torch.no_grad():
                    for p in model.parameters():
                        p.mul_(300)
            if burst and step == 35:
                with torch.no_grad():
                    for p, old in zip(model.parameters(), kept, strict=True):
                        p.copy_(old)
            optimizer.zero_grad()
            loss = model(*args).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
        live = {f.fingerprint for f in seen}
        assert live <= {f.fingerprint for f in monitor.diagnose().findings}
    return seen


def test_what_was_warned_about_is_in_the_diagnosis_of_a_run_that_has_calmed_down(tmp_path: Path) -> None:
    path = tmp_path / "run.gnnstab"
    seen = trained(path, burst=True)
    assert seen
    diagnosis = gnnstab.diagnose(path)
    assert {f.fingerprint for f in seen} <= {f.fingerprint for f in diagnosis.findings}
    statuses = {rule.code: rule.status for rule in diagnosis.rules}
    assert {statuses[f.code] for f in seen} == {"fired"}
    (score, *_) = [s for s in diagnosis.signals if s.name == "score.max_abs" and s.head is None]
    assert score.value < 100
    assert score.detail["worst"] > 1e4
    assert 30 <= score.detail["worst_step"] < 35
    assert re.search(r"\nrun      (score\.max_abs|attention\.entropy) of convs\.", str(diagnosis))
    assert "During the run: score.max_abs" in render(diagnosis, "text", verbose=True)


def test_the_healthy_twin_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.gnnstab"
    assert trained(path, burst=False) == []
    diagnosis = gnnstab.diagnose(path)
    assert not [e for e in diagnosis.events if e.kind == "finding"]
    assert "\nrun  " not in str(diagnosis)
    assert "During the run" not in render(diagnosis, "text", verbose=True)


def test_an_event_gives_the_finding_back() -> None:
    for finding in (SPIKE, replace(SPIKE, layer="a", head=2, value=math.inf, severity="error")):
        assert findings_in([as_event(finding)]) == [finding]


@pytest.mark.parametrize(
    "spoilt", [{}, {"code": 3}, {"severity": "loud"}, {"value": "much"}, {"threshold": True}, {"unit": None}]
)
def test_what_a_stranger_has_spoilt_is_left_out(spoilt: dict[str, Any]) -> None:
    event = as_event(SPIKE)
    detail = {**event.detail, **spoilt} if spoilt else {}
    assert findings_in([replace(event, detail=detail), Event(1, "note")]) == []


def test_a_rule_that_says_as_much_itself_is_not_doubled_and_one_that_says_less_does_not_take_it_back() -> None:
    rule = GradientSpike()
    again, calm, worse = (replace(SPIKE, severity=s, step=50) for s in ("warning", "info", "error"))
    assert joined(rule, [again], [SPIKE]) == [again]
    assert joined(rule, [worse], [SPIKE]) == [worse]
    assert joined(rule, [calm], [SPIKE]) == [calm, SPIKE]
    assert joined(rule, [], [SPIKE, replace(SPIKE, severity="error"), SPIKE]) == [replace(SPIKE, severity="error")]
    assert joined(rule, [], [replace(SPIKE, code="GS301")]) == []


def test_selection_and_thresholds_hold_for_live_findings_too() -> None:
    signals = Signals("trace", (), events=(as_event(SPIKE),))

    def codes(**options: Any) -> list[str]:
        return [f.code for f in run(signals, **options).findings if f.code == "GS603"]

    assert codes() == ["GS603"]
    assert codes(ignore=["GS603"]) == []
    assert codes(thresholds={"GS603": {"ratio": 20.0}}) == ["GS603"]
    assert codes(thresholds={"GS603": {"ratio": 50.0}}) == []
    assert codes(overrides=[Override("other", "GS603", {"ratio": 50.0})]) == ["GS603"]


GROWTH = replace(SPIKE, code="GS301", layer="conv", signal="score.growth", step=60, value=0.08, threshold=0.05)


def scores(after: float, steps: int = 200, *, last: float | None = None) -> tuple[Series, ...]:
    """Scores of 70 up to step 60, ``after`` from then on."""
    values = np.where(np.arange(steps) <= 60, 70.0, after)
    values[-1] = values[-1] if last is None else last
    return (Series("score.max_abs", "conv", None, np.arange(steps), values),)


def losses(end: float) -> Series:
    """From 1 evenly down to ``end``, where it stays."""
    values = np.maximum(np.linspace(1.0, 1.0 - 2.0 * (1.0 - end), 200), end)
    return Series("loss", None, None, np.arange(200), values)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (scores(80.0), True),
        (scores(400.0), False),
        (scores(400.0, last=20.0), False),
        (scores(math.inf), False),
        (scores(80.0, steps=100), False),
        ((), False),
        ((*scores(400.0), losses(0.0)), True),
        ((*scores(400.0), losses(0.9)), False),
        ((*scores(400.0), losses(-1.0)), False),
    ],
)
def test_only_a_forecast_that_did_not_come_true_is_settled(series: tuple[Series, ...], expected: bool) -> None:
    assert settled(GROWTH, series) is expected
    found = run(Signals("trace", (), series=series, events=(as_event(GROWTH),))).findings
    assert ("GS301" in [f.code for f in found]) is not expected
    assert not settled(replace(SPIKE, layer="conv"), series)


@pytest.mark.parametrize("signal", ["precision.rounding", "output.growth"])
@pytest.mark.parametrize(
    ("severity", "end", "expected"), [("warning", 0.0, True), ("warning", 0.9, False), ("error", 0.0, False)]
)
def test_a_warning_of_rounding_or_growth_is_settled_where_the_loss_ends_at_its_best(
    signal: str, severity: str, end: float, expected: bool
) -> None:
    finding = replace(SPIKE, layer="conv", signal=signal, severity=severity)
    assert settled(finding, (losses(end),)) is expected


RISE = replace(SPIKE, code="GS601", signal="loss.first_rise", step=4)
"""Of the first steps of a run."""


@pytest.mark.parametrize(
    ("finding", "end", "expected"),
    [
        (RISE, 0.4, "info"),
        (RISE, 0.6, "warning"),
        (replace(RISE, severity="error"), 0.4, "error"),
        (SPIKE, 0.4, "info"),
        (SPIKE, 0.6, "warning"),
        (replace(SPIKE, code="GS607", signal="loss.growth"), 0.4, "info"),
        (replace(SPIKE, code="GS607", signal="loss.growth"), 0.6, "warning"),
    ],
)
def test_what_a_run_has_come_past_is_information(finding: Finding, end: float, expected: str) -> None:
    found = run(Signals("trace", (), series=(losses(end),), events=(as_event(finding),))).findings
    assert [f.severity for f in found if f.code == finding.code] == [expected]


@pytest.mark.parametrize(
    ("after", "severity"),
    [
        (lambda i: 0.8 * 0.95**i, "info"),
        (lambda i: (3.0 if i < 10 else 0.8) * 0.95**i, "info"),
        (lambda i: 0.8, "warning"),
        (lambda i: 0.8 + 0.02 * i, "warning"),
        (lambda i: 0.8 * 0.95 ** min(i, 40) * 1.05 ** max(i - 40, 0), "warning"),
        (lambda i: 0.8 * 0.95**i if i < 60 else math.nan, "warning"),
    ],
    ids=["falls", "rises and falls", "stands", "rises", "leaves its best", "breaks"],
)
@pytest.mark.parametrize("live", [True, False])
def test_a_jump_of_the_rate_that_the_loss_came_down_after_is_information(
    after: Callable[[int], float], severity: str, live: bool
) -> None:
    values = np.array([1.0 - 0.005 * i if i <= 40 else after(i - 41) for i in range(110)])
    detail = {"before": 1e-3, "after": 2e-2}
    rate = Signal("optimizer.lr_jump", 1.0 if live else 20.0, source="training", step=40, detail=detail)
    told = replace(SPIKE, code="GS606", signal="optimizer.lr_jump", step=40, value=20.0)
    series = (Series("loss", None, None, np.arange(110), values),)
    found = run(Signals("trace", (), (rate,), series=series, events=(as_event(told),) if live else ())).findings
    assert [f.severity for f in found if f.code == "GS606"] == [severity]


def jump(name: str, layer: str | None, after: float, end: float = 1.0) -> Series:
    """1, at step 60 5000, at step 61 ``after``, and ``end`` from then on."""
    values = np.where(np.arange(200) < 60, 1.0, end)
    values[60:62] = 5000.0, after
    return Series(name, layer, None, np.arange(200), values)


@pytest.mark.parametrize(
    ("loss", "given", "expected"),
    [
        (jump("loss", None, 1.0), jump("input.rms", "conv", 1.0), ("GS406", "warning")),
        (jump("loss", None, 1.0, end=0.1), jump("input.rms", "conv", 1.0), ("GS406", "info")),
        (jump("loss", None, 4000.0), jump("input.rms", "conv", 1.0), ("GS601", "error")),  # the weights are lost
        (jump("loss", None, 1.0), jump("input.rms", "conv", 4000.0), ("GS601", "error")),
        (jump("loss", None, 1.0), Series("input.rms", "conv", None, np.arange(200), np.ones(200)), ("GS601", "error")),
    ],
)
def test_a_jump_that_one_batch_brings_in_is_no_rate(loss: Series, given: Series, expected: tuple[str, str]) -> None:
    raised = replace(SPIKE, code="GS601", signal="loss", severity="error", step=60, value=5000.0, threshold=1000.0)
    layers = (LayerFacts("conv", "TransformerConv", 0, True),)
    found = run(Signals("trace", layers, series=(loss, given), events=(as_event(raised),))).findings
    assert [(f.code, f.severity) for f in found if f.code in ("GS406", "GS601")] == [expected]


@pytest.mark.parametrize(("broke", "told"), [(60, ["GS406"]), (61, []), (20, [])])
def test_a_jump_of_the_input_in_the_step_that_broke_the_run_is_told_beside_it(broke: int, told: list[str]) -> None:
    layers = (LayerFacts("conv", "TransformerConv", 0, True),)
    events = (Event(broke, "non-finite", stage="loss"),)
    scores = Series("score.max_abs", "conv", None, np.arange(61), np.where(np.arange(61) < 60, 1.0, 1e8))
    rounded = Signal("precision.rounding", 8.7, "conv", step=60)
    signals = Signals("trace", layers, (rounded,), series=(jump("input.rms", "conv", 1.0), scores), events=events)
    found = run(signals).findings
    assert [f.code for f in found if f.code == "GS406"] == told
    assert [f.explained_by for f in found if f.code == "GS501"] == [told[0] if told else None]


@pytest.mark.parametrize(("end", "expected"), [(0.4, True), (0.9, False)])
def test_a_loss_that_jumps_up_at_once_and_comes_back_has_not_ended_at_its_best(end: float, expected: bool) -> None:
    """The median of the first losses is that of the jump; what was before any update tells whether anything was learned."""
    came_back = losses(end)
    came_back.values[1:12] = 40.0
    assert trained_well(Signals("trace", (), series=(came_back,))) is expected
