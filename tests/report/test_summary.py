"""Order, verdicts and shortening that all formats share."""

from __future__ import annotations

from dataclasses import replace

import pytest

import examples
from gnnstab.records import Cause, FixAdvice
from gnnstab.report import summary
from gnnstab.report.numbers import compared, number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.229, "0.229"),
        (0.0, "0"),
        (65504.0, "65504"),
        (1.234e-5, "1.2e-5"),
        (3e9, "3e9"),
        (-1234.5, "-1234"),
        (12.34, "12.3"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (None, "–"),
        (999.6, "1000"),
        (0.00123, "0.00123"),
    ],
)
def test_number(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_numbers_that_look_alike_get_more_digits() -> None:
    assert compared(0.34999, 0.35, "x") == "0.34999 < 0.35 x"
    assert compared(float("nan"), 2.0, "") == "not finite"
    assert compared(3.0, float("nan"), "") == "3"


def test_order_of_findings_does_not_depend_on_their_order() -> None:
    many = examples.many_findings()
    turned = replace(many, findings=tuple(reversed(many.findings)))
    assert summary.in_reading_order(turned) == summary.in_reading_order(many)


def test_fixes_go_from_proven_to_failed() -> None:
    base = examples.one_finding().causes[3]
    verdicts = ("made-worse", "not-tested", "no-effect", "confirmed", "inconclusive")
    cause = replace(base, fixes=tuple(FixAdvice(v, "x", v) for v in verdicts))
    assert [f.verdict for f in summary.fixes_in_order(cause)] == [
        "confirmed", "not-tested", "inconclusive", "no-effect", "made-worse",
    ]  # fmt: skip
    failed = replace(base, fixes=(FixAdvice("a", "x", "made-worse"), FixAdvice("b", "x", "no-effect")))
    assert summary.recommended(failed) is None


def test_the_worst_head_is_the_one_furthest_on_the_wrong_side() -> None:
    base = examples.one_finding()
    low = base.findings[0]
    own = {s.head: s.value for s in base.signals if s.name == low.signal and s.layer == low.layer}
    assert own[0] != low.value, "the finding holds the mean over heads"
    assert summary.heads_of(base, low) == f"all heads (worst head 0: {number(own[0])})"
    high = replace(low, signal="score.max_abs", value=130.0, threshold=50.0)
    (largest,) = (s.value for s in base.signals if s.name == high.signal and s.layer == low.layer and s.head == 2)
    assert summary.heads_of(base, replace(high, value=largest)) == "worst head 2"
    assert summary.heads_of(base, replace(low, head=1)) == ""
    assert summary.heads_of(base, replace(low, layer=None)) == ""


def test_the_beginning_of_a_reason_ends_at_a_clause_or_word() -> None:
    text = "first clause; second clause. third clause"
    assert summary.beginning(text, 100) == text
    assert summary.beginning(text, 30) == "first clause; second clause. …"
    assert summary.beginning(text, 15) == "first clause …"
    assert summary.beginning("word " * 50, 23) == "word word word word …"


def test_what_was_shown_is_treated_before_what_merely_fits() -> None:
    causes = (
        Cause("feature-scale", "root-cause", "", how="inferred"),
        Cause("learning-rate", "root-cause", "", how="undone"),
    )
    diagnosis = replace(examples.clean(), causes=causes)
    assert [cause.cause for cause in summary.to_change(diagnosis)] == ["learning-rate", "feature-scale"]
