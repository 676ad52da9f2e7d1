"""A run that has learned gets information, and no error, of what keeps models from learning: one mechanism for scales and formats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gnnstab.records import LayerFacts, Series, Signal, Signals
from gnnstab.records.vocabulary import LOSS_OVER_ZERO, PLACE_TARGETS_LEFT, PRECISION_ROUNDING
from gnnstab.rules.engine import run

LAYER = LayerFacts("conv", "TransformerConv", 0, True, heads=1)
LEARNED = np.geomspace(2.0, 0.01, 40)
COMMON = np.geomspace(2.0, 0.9, 40)


def of_run(losses: Sequence[float], *more: Signal, kind: str = "trace") -> Signals:
    """Raw inputs in fp16 that saturate the one layer, which is soft at an input of RMS 1."""
    numbers = {
        "attention.entropy": 0.02,
        "attention.one_hot_share": 0.9,
        "attention.entropy_unit_input": 0.95,
        "degree.median": 8.0,
        "input.rms": 40.0,
        PRECISION_ROUNDING: 1.4,
    }
    values = [Signal(name, value, "conv", None, 39, "training") for name, value in numbers.items()]
    values.append(Signal("place.rms", 70.0, "x", source="training", detail={"arrives": True, "fed": []}))
    detail = {"start": float(np.median(losses[:5])), "best": float(min(losses)), "first": float(losses[0]), "steps": 40}
    values.append(Signal("loss", float(losses[-1]), None, None, 39, "training", detail))
    series = (Series("loss", None, None, np.arange(40), np.array(losses)),)
    return Signals(kind, (LAYER,), (*values, *more), series=series, context={"precision": "fp16"})  # type: ignore[arg-type]


def severities(signals: Signals) -> dict[str, str]:
    found = run(signals, select=("GS302", "GS406", "GS501")).findings
    return {f.code: f.severity for f in found}


def over_zero(first: float, zeros: float) -> Signal:
    return Signal(LOSS_OVER_ZERO, first / zeros, source="training", detail={"zeros": zeros})


def test_what_a_run_has_learned_with_is_information() -> None:
    assert severities(of_run(LEARNED)) == dict.fromkeys(("GS302", "GS406", "GS501"), "info")
    assert severities(of_run(LEARNED, over_zero(2.0, 1.6))) == dict.fromkeys(("GS302", "GS406", "GS501"), "info")


@pytest.mark.parametrize(
    "signals",
    [
        of_run(COMMON),
        of_run(LEARNED, over_zero(2.0, 0.05)),  # To come down from a far-off first output is nothing learned.
        of_run(
            LEARNED, over_zero(2.0, 2.0), Signal(PLACE_TARGETS_LEFT, 0.9, "y", source="training")
        ),  # Only their mean.
        of_run([*LEARNED[:-6], *([math.e] * 6)]),
    ],
    ids=["hardly", "far off at first", "the mean alone", "lost again"],
)
def test_a_run_that_has_not_is_told_of_errors(signals: Signals) -> None:
    assert severities(signals) == dict.fromkeys(("GS302", "GS406", "GS501"), "error")


def test_a_model_at_hand_has_no_run_that_speaks_for_it() -> None:
    assert set(severities(of_run(LEARNED, kind="model")).values()) == {"error"}
