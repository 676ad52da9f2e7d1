"""The live rules about outputs that grow, gradients that scatter, and what later warnings say of the rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from gnnstab.records import SeriesKey, Signal
from gnnstab.rules.live import LiveEngine
from live_engine import follow


def test_outputs_that_grow_and_go_on_are_told_while_the_loss_is_no_better() -> None:
    def told(output: Callable[[int], float], loss: Callable[[int], float]) -> list[tuple[str, str | None]]:
        return [(f.signal, f.layer) for f in follow(LiveEngine(), range(150), output=output, loss=loss)]

    assert told(lambda i: 1.02**i, lambda i: 1.0) == [("output.growth", "conv")]
    assert told(lambda i: 1.02**i if i > 9 else 0.0, lambda i: 1.0) == [], "what begins at zero has no first size"
    assert told(lambda i: 1.02**i, lambda i: 0.97**i) == []
    assert told(lambda i: min(1.02**i, 3.9), lambda i: 1.0) == []
    assert told(lambda i: min(0.1 * 1.02**i, 0.9), lambda i: 1.0) == [], "up to a usual size"
    assert told(lambda i: 1 + 9 * (1 - math.exp(-i / 8)), lambda i: 1.0) == []
    assert follow(LiveEngine(), range(150), output=lambda i: 1.02**i) == [], "no loss, so none that stands"


def test_gradients_that_scatter_while_the_loss_falls_are_no_spikes() -> None:
    def told(loss: Callable[[int], float]) -> list[str]:
        spikes = {40, 60, 80}
        return [
            f.code
            for f in follow(LiveEngine(), range(100), loss=loss, grad_norm=lambda i: 50.0 if i in spikes else 1.0)
        ]

    assert told(lambda i: -0.05 * i) == []
    assert told(lambda i: 1.0 if i < 12 else 0.4) == [], "at half of its start a run has learned"
    assert told(lambda i: 1.0) == ["GS603"]


@pytest.mark.parametrize(("lr", "named"), [(1.0, True), (0.004, False)])
def test_a_rate_that_was_measured_to_be_calm_is_the_one_that_later_warnings_name(lr, named):
    """A third of a rate that is far too high is too high; a run that is at the calm one by now is told to divide."""
    engine = LiveEngine()
    detail = {"calm_lr": 0.004, "lr": 1.0, "first": 1.6, "optimizer": "Adam", "above": 6, "peak": 1}
    found = engine.tried(Signal("optimizer.loss_rise", 1e5, source="training", detail=detail), 50.0)
    key = SeriesKey("c2", "train", 0, "output")
    for step, (rms, loss) in enumerate([(0.5, 1.6), (6e2, 3e5)]):
        found += engine.update(step, [key], np.array([rms]), loss=loss, lr=lr)
    later = [f.message for f in found if f.code == "GS601"][1:]
    assert len(later) == 2
    assert all(("to 0.004, at which trial steps went best" in text) == named for text in later), later
    assert all(("by 3" in text) != named for text in later), later
