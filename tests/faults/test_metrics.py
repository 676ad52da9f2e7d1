"""Counting, against numbers worked out by hand or known from tables."""

from __future__ import annotations

import math

import pytest

from faults.metrics import Score, jaccard, score, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 100, 0.0018, 0.0545)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=2e-4)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_score_counts_hits_false_alarms_and_misses() -> None:
    rows = [({"a"}, {"a"}), ({"a", "b"}, {"b"}), (set(), {"a"}), ({"b"}, {"a", "b"}), (set(), set())]
    counts = score("a", rows)
    assert counts == Score(hits=1, false_alarms=2, misses=1)
    assert counts.precision == pytest.approx(1 / 3)
    assert counts.recall == pytest.approx(1 / 2)
    assert counts.f1 == pytest.approx(2 / 5)


def test_a_cause_that_never_occurs_has_no_score() -> None:
    counts = score("a", [(set(), set())])
    assert math.isnan(counts.precision)
    assert math.isnan(counts.recall)
    assert math.isnan(counts.f1)


def test_jaccard_is_a_mean_over_rows() -> None:
    assert jaccard([({"a", "b"}, {"a"}), ({"a"}, {"a"}), ({"a"}, {"b"})]) == pytest.approx((0.5 + 1 + 0) / 3)
