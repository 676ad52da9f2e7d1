"""What steps with softer scores say of sharp attention: of a large input's scores anything but harm acquits, of large weights only a worse loss."""

from __future__ import annotations

import pytest

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    LOSS,
    LOSS_OVER_ZERO,
    OPTIMIZER_INPUT_SHARE,
    OPTIMIZER_SOFTER,
    PLACE_RMS,
)
from gnnstab.rules._by_steps import by_steps, by_steps_of_inputs
from gnnstab.rules.learned import in_the_way


@pytest.mark.parametrize(
    ("undone", "of_input", "of_weights"),
    [(0.60, "info", "info"), (0.25, "info", "error"), (0.17, "error", "error"), (0.02, "error", "error")],
)
def test_steps_with_softer_scores(undone: float, of_input: str, of_weights: str) -> None:
    told = {"names": ["conv"], "first": 1.3, "best": 0.26, "undone": undone, "steps": 30, "trained": False}
    signals = Signals("model", (), (Signal(OPTIMIZER_SOFTER, 0.26 / undone, source="steps", detail=told),))
    for code, severity in (("GS302", of_input), ("GS301", of_weights)):
        finding = Finding(
            code=code, name="", cause="attention-explosion", severity="error", confidence="high", layer="conv",
            head=None, step=None, unit="", message="sharp.", signal=ATTENTION_ENTROPY, value=0.1, threshold=0.3,
        )  # fmt: skip
        assert by_steps(finding, signals).severity == severity


@pytest.mark.parametrize(
    ("told", "severity"),
    [
        ({"best": 0.05, "undone": 0.04}, "error"),
        (
            {"best": 0.05, "undone": 0.04, "unseen": True},
            "info",
        ),  # Rows without a step gain by them.
        ({"best": 3.7, "undone": 6.1, "zeros": 2.8}, "error"),  # Neither learns anything.
        ({"best": 1.7, "undone": 6.1, "zeros": 2.8}, "info"),
    ],
)
def test_who_acquits_sharp_weights(told: dict[str, float], severity: str) -> None:
    told = {"names": ["conv"], "first": 3.0, "steps": 30, "trained": False, **told}
    signals = Signals("model", (), (Signal(OPTIMIZER_SOFTER, told["best"] / told["undone"], detail=told),))
    finding = Finding(
        code="GS301", name="", cause="attention-explosion", severity="error", confidence="high", layer="conv",
        head=None, step=None, unit="", message="sharp.", signal=ATTENTION_ENTROPY, value=0.1, threshold=0.3,
    )  # fmt: skip
    assert by_steps(finding, signals).severity == severity


@pytest.mark.parametrize(
    ("kind", "best", "severity"), [("trace", 0.06, "info"), ("trace", 1.1, "warning"), ("model", 0.06, "warning")]
)
def test_a_large_input_of_a_run_that_has_learned_is_information(kind: str, best: float, severity: str) -> None:
    tried = {"names": ["x"], "first": 5.14, "best": 0.06, "undone": 0.002, "steps": 100, "zeros": 1.79}
    told = {"first": 5.14, "start": 5.0, "best": best, "steps": 100}
    values = (Signal(LOSS, best, detail=told), Signal(LOSS_OVER_ZERO, 5.14 / 1.79), Signal(OPTIMIZER_INPUT_SHARE, 0.5, detail=tried))  # fmt: skip
    finding = Finding(
        code="GS406", name="", cause="feature-scale", severity="warning", confidence="high", layer="x",
        head=None, step=None, unit="", message="large.", signal=PLACE_RMS, value=10.7, threshold=10.0,
    )  # fmt: skip
    signals = Signals(kind, (), values)
    assert in_the_way(by_steps_of_inputs(finding, signals), signals).severity == severity
