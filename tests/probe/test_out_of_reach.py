"""A trial at a lower rate is given up only where its losses fall without a rise, and too slowly for what they would have to reach."""

import math

import pytest

from gnnstab.probe.optimizer.learning import HEARD, STEPS, _out_of_reach


def falling(pace: float, steps: int = HEARD) -> list[float]:
    return [math.exp(-pace * step) for step in range(steps + 1)]


@pytest.mark.parametrize(
    ("losses", "given_up"),
    [
        (falling(0.002), True),
        (falling(0.0), True),
        (falling(0.002, HEARD - 1), False),
        (falling(1 / STEPS), False),
        ([1.0, 2.0, *falling(0.002)], False),
        ([*falling(0.1)[:-1], 2.0], False),
        ([1.0, math.inf, *falling(0.002)], False),
        ([-loss for loss in falling(0.002)], False),
    ],
    ids=["slow", "flat", "too early to say", "fast enough", "rose first", "rises", "not finite", "negative"],
)
def test_only_what_falls_slowly_is_given_up(losses: list[float], given_up: bool) -> None:
    assert _out_of_reach(losses[0], 1.0, losses) is given_up
