"""A lower learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gnnstab.fixes.training_fix import TrainingFix, positive
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OPTIMIZER_LR_TO_RMS
from gnnstab.rules.reading import matrices

CALM = 0.03
"""lr/rms(W) to aim at: .002 to .07 trained well where it was measured, .35 collapsed."""


class LowerLearningRate(TrainingFix):
    """Lowers the learning rate until a first update of Adam moves no weight matrix by more than 3 % of its RMS.

    The RMS is the measured one, or that of fresh weights where it is smaller: too large a rate has made the weights grow, and
    the training has to start again. Where nothing was measured, the rate is divided by three. A step from 5e-4 to 3.5e-4
    cures nothing that was measured.
    Options: ``lr`` (the new rate), or ``factor`` and ``current`` (the present rate, 1e-3).
    """

    name: ClassVar[str] = "lower-lr"
    title: ClassVar[str] = "lower learning rate"
    causes: ClassVar[tuple[str, ...]] = ("learning-rate", "dead-units")
    signal: ClassVar[str] = OPTIMIZER_LR_TO_RMS
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    phase: ClassVar[int | None] = 2
    cost: ClassVar[str] = "slower training"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The optimizer's ``lr=``."""
        if "lr" in options or "current" in options:
            rate = self.training_options(signals=signals, **options)["lr"]
            return f"torch.optim.Adam(model.parameters(), lr={rate:.3g})"
        factor = options.get("factor", _factor(signals, None))
        written = "lr / 3" if factor == 1 / 3 else f"{factor:.2g} * lr"
        return f"torch.optim.Adam(model.parameters(), lr={written})"

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``lr``."""
        if "lr" in options:
            return {"lr": positive(options, "lr", 1.0)}
        current = positive(options, "current", 1e-3)
        return {"lr": current * positive(options, "factor", _factor(options.get("signals"), current))}


def _factor(signals: Signals | None, rate: float | None) -> float:
    """What the rate has to be multiplied with, from the largest measured lr/rms(W); a third at least.

    ``rate`` is the present one, None where only the signals may know it.
    """
    moved = matrices(signals.find(OPTIMIZER_LR_TO_RMS)) if signals is not None else []
    if signals is None or not moved:
        return 1 / 3
    known = [lr for s in moved if isinstance(lr := s.detail.get("lr"), (int, float))]
    now = rate if rate is not None else max(known, default=0.0)
    worst = max(now * _one_over_fresh_rms(signals), *(s.value for s in moved))
    return min(1 / 3, CALM / worst) if worst > 0 else 1 / 3


def _one_over_fresh_rms(signals: Signals) -> float:
    """Of the widest layer: PyG draws its linear maps from U(−1/√D, 1/√D), whose RMS is 1/√(3D); 0 where no width is known."""
    widest = max((max(layer.in_channels) for layer in signals.layers if layer.in_channels), default=0)
    return math.sqrt(3 * widest)
