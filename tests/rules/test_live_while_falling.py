"""What the live rules say while the loss falls: information, which becomes a warning where it stands still."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from gnnstab.rules.live import LiveEngine
from live_engine import follow


@pytest.mark.parametrize(("loss", "told"), [(lambda i: 3.0 * 0.97**i, "info"), (lambda i: 3.0, "error")])
def test_rounding_of_large_logits_is_information_while_the_loss_falls(loss: Callable[[int], float], told: str) -> None:
    found = follow(LiveEngine(precision="fp16", channels={"conv": 4}), range(60), lambda i: 3000.0, loss=loss)
    assert found[0].step == 0 and found[0].severity == "info", "nothing is known of the run yet"
    assert {f.code for f in found} == {"GS501"} and found[-1].severity == told


@pytest.mark.parametrize(("most", "told"), [(80.0, ["info"]), (120.0, ["info", "warning"])])
def test_scores_that_grow_while_the_loss_falls_are_told_once_they_pass_no_gradient(
    most: float, told: list[str]
) -> None:
    found = follow(LiveEngine(), range(120), lambda i: min(most, math.exp(0.1 * i)), loss=lambda i: 3.0 * 0.997**i)
    assert [f.severity for f in found if f.code == "GS301"] == told
