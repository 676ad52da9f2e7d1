"""A lower learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gnnstab.fixes.training_fix import TrainingFix, positive
from gnnstab.records import LayerFacts, Signals


class LowerLearningRate(TrainingFix):
    """Divides the learning rate by three. Helps when Adam's first updates move the weights by more than a tenth.

    A step from 5e-4 to 3.5e-4 cures nothing that was measured. Options: ``lr`` (the new rate), or ``factor`` (1/3)
    and ``current`` (the present rate, 1e-3).
    """

    name: ClassVar[str] = "lower-lr"
    title: ClassVar[str] = "lower learning rate"
    causes: ClassVar[tuple[str, ...]] = ("learning-rate", "dead-units")
    signal: ClassVar[str] = "optimizer.lr_to_rms"
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    phase: ClassVar[int | None] = 2
    cost: ClassVar[str] = "slower training"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The optimizer's ``lr=``."""
        if "lr" in options or "current" in options:
            return f"torch.optim.Adam(model.parameters(), lr={self.training_options(**options)['lr']:.3g})"
        return "torch.optim.Adam(model.parameters(), lr=lr / 3)"

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``lr``."""
        if "lr" in options:
            return {"lr": positive(options, "lr", 1.0)}
        return {"lr": positive(options, "current", 1e-3) * positive(options, "factor", 1 / 3)}
