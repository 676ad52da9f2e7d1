"""A growth that was said to go on is information at the end where later steps have shown it to end, and a warning where they have not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from gnnstab.records import LayerFacts, Series, Signals
from gnnstab.records.vocabulary import LOSS_GROWTH, OUTPUT_GROWTH
from gnnstab.rules.engine import run
from gnnstab.rules.gs607_steady_growth import SteadyGrowth
from gnnstab.rules.recalled import as_event

AT = 60
"""The step of the finding, up to which everything grows by 2 % a step from step 20 on."""


def grown(i: int) -> float:
    return 1.02 ** max(min(i, AT) - 20, 0)


def told(loss: Callable[[int], float], output: Callable[[int], float], signal: str, pace: float, steps: int) -> str:
    rule = SteadyGrowth()
    (live,) = rule.objective(AT, loss(AT), pace) if signal == LOSS_GROWTH else rule.output("conv", AT, 4.5, pace)
    each = np.arange(steps)
    series = (
        Series("loss", None, None, each, np.array([loss(i) for i in range(steps)])),
        Series("output.rms", "conv", None, each, np.array([output(i) for i in range(steps)])),
    )
    layers = (LayerFacts("conv", "TransformerConv", 0, True),)
    found = run(Signals("trace", layers, series=series, events=(as_event(live),))).findings
    (one,) = [f for f in found if f.code == "GS607"]
    ends = ("again, since step", "levelled off, from step", "no further than a quarter, from step")
    assert any(end in one.message for end in ends) == (one.severity == "info")
    return one.severity


@pytest.mark.parametrize(
    ("loss", "pace", "steps", "severity"),
    [
        (lambda i: grown(i) if i < 80 else 0.9, 0.02, 200, "info"),
        (lambda i: (grown(i) if i < 80 else 0.9) * (1 + 0.2 * math.sin(i)), 0.02, 200, "info"),
        (lambda i: grown(i) if i < 80 else 0.9, 0.02, 110, "warning"),
        (lambda i: 1.0 - 0.002 * i, 0.02, 200, "warning"),
        (lambda i: 0.7 - 0.03 * math.cos(i / 20), 0.002, 200, "info"),
        (lambda i: 0.7 - 0.03 * math.cos(i / 20), 0.001, 200, "warning"),
        (lambda i: 0.7 if i < 80 else 0.9, 0.002, 200, "warning"),
        (lambda i: grown(i), 0.02, 200, "warning"),
        (lambda i: grown(i) * 1.02 ** max(i - AT, 0), 0.02, 200, "warning"),
        (lambda i: (grown(i) if i < 80 else 0.9) if i < 190 else 5.0, 0.02, 200, "warning"),
        (lambda i: (grown(i) if i < 80 else 0.9) if i < 199 else math.inf, 0.02, 200, "warning"),
    ],
    ids=[
        "down",
        "scatters",
        "too short",
        "never rose",
        "held",
        "too early to tell",
        "held higher",
        "stands",
        "goes on",
        "rises again",
        "breaks",
    ],
)
def test_a_loss_that_has_come_down_again(loss: Callable[[int], float], pace: float, steps: int, severity: str) -> None:
    assert told(loss, lambda i: 1.0, LOSS_GROWTH, pace, steps) == severity


@pytest.mark.parametrize(
    ("output", "loss", "pace", "severity"),
    [
        (lambda i: 4 * grown(i), lambda i: 0.9 - 0.001 * i, 0.02, "info"),
        (lambda i: 4 * grown(i), lambda i: 0.9 - 0.001 * i, 0.002, "warning"),
        (lambda i: 4 * grown(i) + 3 * (1 - math.exp(-max(i - AT, 0) / 20)), lambda i: 0.9 - 0.001 * i, 0.02, "info"),
        (lambda i: 4 * grown(i) * 1.02 ** max(i - AT, 0), lambda i: 0.9 - 0.001 * i, 0.02, "warning"),
        (lambda i: 4 * grown(i) * (1 if i < 80 else 100), lambda i: 0.9 - 0.001 * i, 0.02, "warning"),
        (lambda i: 4 * grown(i), lambda i: 0.9 if i < 80 else 1.8, 0.02, "warning"),
        (lambda i: 4 * grown(i), lambda i: 0.9 if i < 30 else 1.8, 0.02, "warning"),
    ],
    ids=["levelled", "too slow to tell", "slows down", "goes on", "ran into an end", "lost", "lost before"],
)
def test_an_output_that_has_levelled_off(
    output: Callable[[int], float], loss: Callable[[int], float], pace: float, severity: str
) -> None:
    assert told(loss, output, OUTPUT_GROWTH, pace, 240) == severity
