"""Budgets: how they read, and what they hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import examples
from gnnstab.budgets import QUANTITIES, Budget, check
from gnnstab.errors import UsageError
from gnnstab.records import SIGNALS, Diagnosis, Signal


def measured(name: str, *values: float, degree: float | None = None, detail: dict | None = None) -> Diagnosis:
    """One layer with a value per head."""
    signals = [Signal(name, value, "gnn.a", head, detail=detail or {}) for head, value in enumerate(values)]
    if degree is not None:
        signals.append(Signal("degree.max", degree, "gnn.a"))
    return replace(examples.clean(), signals=tuple(signals))


@pytest.mark.parametrize(
    ("text", "signal", "upper", "limit", "max_degree"),
    [
        ("max one-hot share 0.25 at in-degree <= 20", "attention.one_hot_share", True, 0.25, 20),
        ("max one-hot share 25% at in-degree ≤ 20", "attention.one_hot_share", True, 0.25, 20),
        ("Maximum  one-hot share  25 % at indegree <= 20", "attention.one_hot_share", True, 0.25, 20),
        ("fp16 headroom >= 10x", "precision.fp16_headroom", False, 10, math.inf),
        ("fp16 headroom ≥ 10×", "precision.fp16_headroom", False, 10, math.inf),
        ("max score 50", "score.max_abs", True, 50, math.inf),
        ("min entropy 0.3", "attention.entropy", False, 0.3, math.inf),
        ("entropy > 0.3", "attention.entropy", False, 0.3, math.inf),
        ("score.within_std < 1e1", "score.within_std", True, 10, math.inf),
        ("max gradient.ratio 100", "gradient.ratio", True, 100, math.inf),
    ],
)
def test_reading(text: str, signal: str, upper: bool, limit: float, max_degree: float) -> None:
    budget = Budget.parse(text)
    assert (budget.signal, budget.upper, budget.limit, budget.max_degree) == (signal, upper, limit, max_degree)
    assert budget.text == text


@pytest.mark.parametrize(
    "text", ["", "entropy", "max entropy", "entropy 0.3", "max entropy much", "entropy = 3", "max entropy 1 at night"]
)
def test_what_is_not_understood_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood; write for example"):
        Budget.parse(text)


def test_unknown_quantities_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown quantity 'beauty'; known are score, logit, score spread"):
        Budget.parse("max beauty 1")


def test_every_quantity_is_a_signal() -> None:
    assert set(QUANTITIES.values()) <= set(SIGNALS)


def test_violations_name_layer_head_and_number() -> None:
    (violation,) = check(["min entropy 0.3"], measured("attention.entropy", 0.5, 0.3, 0.12))
    assert str(violation) == (
        "min entropy 0.3: gnn.a, head 2: attention.entropy is 0.12 fraction of ln(in-degree), below 0.3"
    )


@pytest.mark.parametrize(
    ("text", "count"), [("score <= 50", 1), ("score < 50", 2), ("score >= 50", 1), ("score > 50", 2)]
)
def test_the_limit_itself_is_within_unless_the_sign_is_strict(text: str, count: int) -> None:
    assert len(check([text], measured("score.max_abs", 49.0, 50.0, 51.0))) == count


@pytest.mark.parametrize("text", ["max score 50", "min score 1", "score < 5", "score > 5"])
def test_nan_is_beyond_every_budget(text: str) -> None:
    (violation,) = check([text], measured("score.max_abs", math.nan))
    assert "not a finite number" in str(violation)


def test_a_budget_that_nothing_speaks_to_is_not_kept() -> None:
    (violation,) = check(["fp16 headroom >= 10x"], measured("score.max_abs", 1.0))
    assert str(violation) == "fp16 headroom >= 10x: could not be checked: precision.fp16_headroom was not measured"


def test_in_degree_conditions() -> None:
    text = "max one-hot share 0.25 at in-degree <= 20"
    assert len(check([text], measured("attention.one_hot_share", 0.9, degree=16))) == 1
    (violation,) = check([text], measured("attention.one_hot_share", 0.9, degree=35))
    assert "the largest in-degree of what was measured is 35" in str(violation)
    assert "unknown" in str(check([text], measured("attention.one_hot_share", 0.9))[0])
    synthetic = measured("attention.one_hot_share", 0.1, degree=100, detail={"in_degree": 10})
    assert check([text], synthetic) == []
    assert (
        len(check(["max one-hot share 0.25 at in-degree >= 20"], measured("attention.one_hot_share", 0.9, degree=35)))
        == 1
    )


def test_budgets_on_a_real_shape() -> None:
    assert check(["min entropy 0.35", "max one-hot share 20%"], examples.clean()) == []
    layers = {v.signal.layer for v in check(["min entropy 0.35"], examples.one_finding()) if v.signal}
    assert layers == {"gnn_base.gnn.gnn1"}
