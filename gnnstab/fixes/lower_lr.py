"""A lower learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gnnstab.fixes.training_fix import TrainingFix, positive
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE, OPTIMIZER_LR_TO_RMS

LOWER = 1 / 3
"""The advice where no lower rate was tried: what makes a difference that can be measured. 5e-4 to 3.5e-4 cures nothing."""


class LowerLearningRate(TrainingFix):
    """Lowers the learning rate to the first third, ninth, … at which real steps of the optimizer on a copy are calm.

    Where none was tried, the rate is divided by three. Too large a rate has made the weights grow: the training has to start
    again.
    Options: ``lr`` (the new rate), or ``factor`` and ``current`` (the present rate, 1e-3).
    """

    name: ClassVar[str] = "lower-lr"
    title: ClassVar[str] = "lower learning rate"
    causes: ClassVar[tuple[str, ...]] = ("learning-rate", "dead-units")
    signal: ClassVar[str] = OPTIMIZER_LR_TO_RMS
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "slower training"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The optimizer's ``lr=``."""
        name, _, calm = _tried(signals)
        if "lr" in options or "current" in options:
            return _written(name, self.training_options(signals=signals, **options)["lr"])
        if "factor" not in options and calm is not None:
            return _written(name, calm)
        factor = options.get("factor", LOWER)
        return f"torch.optim.{name}(model.parameters(), lr={'lr / 3' if factor == LOWER else f'{factor:.2g} * lr'})"

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``lr``."""
        if "lr" in options:
            return {"lr": positive(options, "lr", 1.0)}
        current = positive(options, "current", 1e-3)
        _, rate, calm = _tried(options.get("signals"))
        factor = calm / rate if calm is not None and rate else LOWER
        return {"lr": current * positive(options, "factor", factor)}


def _written(name: str, rate: float) -> str:
    return f"torch.optim.{name}(model.parameters(), lr={rate:.3g})"


def _tried(signals: Signals | None) -> tuple[str, float | None, float | None]:
    """The optimizer's class, its rate, and the rate at which steps were calm; ``Adam`` and None where nothing was tried."""
    for rise in signals.find(OPTIMIZER_LOSS_RISE) if signals is not None else ():
        calm, rate = rise.detail.get("calm_lr"), rise.detail.get("lr")
        usable = isinstance(calm, (int, float)) and isinstance(rate, (int, float)) and 0 < calm < rate
        return str(rise.detail.get("optimizer", "Adam")), rate if usable else None, calm if usable else None
    return "Adam", None, None
