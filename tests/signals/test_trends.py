"""Checkpoints of one run: trends, and when a limit will be crossed."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest

from gnnstab.errors import UsageError
from gnnstab.records import LayerFacts, Series, Signal, Signals
from gnnstab.signals import Trajectory
from gnnstab.signals._trends import fit


def state(step: int, value: float) -> tuple[int, Signals]:
    facts = (LayerFacts("a", "TransformerConv", 0, True),)
    return step, Signals("checkpoint", facts, (Signal("logit.frobenius", value, "a", 0, source="weights"),))


def trajectory(states: list[tuple[int, Signals]]) -> Signals:
    collected = Trajectory()
    for step, signals in states:
        collected.add(step, signals)
    return collected.signals()


def series(values: list[float]) -> Series:
    return Series("logit.frobenius", "a", 0, np.arange(len(values)) * 100, np.array(values))


def test_exponential_growth_is_found_exactly() -> None:
    trend = fit(series([0.3 * math.exp(0.002 * 100 * i) for i in range(6)]))
    assert trend is not None
    assert trend.slope == pytest.approx(0.002)
    assert trend.clear
    crossing = trend.crossing(0.3 * math.exp(0.002 * 1000))
    assert crossing is not None
    assert crossing[1] == 1000


def test_noise_widens_the_range() -> None:
    generator = np.random.default_rng(0)
    values = [0.3 * math.exp(0.2 * i + 0.05 * generator.standard_normal()) for i in range(8)]
    trend = fit(series(values))
    assert trend is not None
    crossing = trend.crossing(4.0)
    assert crossing is not None
    earliest, expected, latest = crossing
    assert earliest < expected < latest
    exact = 100 * math.log(4.0 / 0.3) / 0.2
    assert earliest <= exact <= latest


@pytest.mark.parametrize("values", [[1.0, 1.1, 0.9, 1.05, 0.95], [1.0, 1.0, 1.0, 1.0]])
def test_no_trend_no_prediction(values: list[float]) -> None:
    trend = fit(series(values))
    assert trend is not None
    assert not trend.clear
    assert trend.crossing(4.0) is None


def test_a_trend_that_leads_away_or_far_predicts_nothing() -> None:
    falling = fit(series([math.exp(-0.1 * i) for i in range(6)]))
    slow = fit(series([math.exp(0.0001 * i) for i in range(6)]))
    assert falling is not None
    assert slow is not None
    assert falling.crossing(4.0) is None
    assert slow.crossing(4.0) is None


def test_three_points_are_no_trend() -> None:
    assert fit(series([1.0, 2.0, 4.0])) is None


def test_a_folder_of_checkpoints_in_any_order() -> None:
    signals = trajectory([state(step, 0.3 + step / 1000) for step in (400, 0, 100, 300, 200)])
    assert signals.value("logit.frobenius", layer="a", head=0) == 0.7
    (line,) = signals.over_steps("logit.frobenius", layer="a") or signals.series
    assert list(line.steps) == [0, 100, 200, 300, 400]
    assert signals.context["checkpoints"] == 5
    assert signals.context["trends"][0]["clear"]


def test_only_the_last_checkpoint_is_kept_whole() -> None:
    collected, gone = Trajectory(), []
    for step in (0, 300, 100, 200):
        signals = state(step, 0.3 + step / 1000)[1]
        gone.append(weakref.ref(signals))
        collected.add(step, signals)
    del signals
    assert [ref() is None for ref in gone] == [True, False, True, True] and collected.last_step == 300


def test_one_checkpoint_is_itself_and_none_is_refused() -> None:
    only = state(7, 0.4)
    assert trajectory([only]) is only[1]
    with pytest.raises(UsageError, match="at least one"):
        trajectory([])
