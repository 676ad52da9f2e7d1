"""What steps with softer scores say of sharp attention: of a large input's scores anything but harm acquits, of large weights only a worse loss."""

from __future__ import annotations

import pytest

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, OPTIMIZER_SOFTER
from gnnstab.rules._by_steps import by_steps


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
