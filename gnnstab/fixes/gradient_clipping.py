"""Gradient clipping at a measured percentile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gnnstab.fixes.training_fix import TrainingFix, positive
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_NORM, GRADIENT_SPIKE


class GradientClipping(TrainingFix):
    """Clips the gradient's norm at the 90th percentile of its history, so that one step in ten is shortened.

    Options: ``norm`` (the limit; measured from the run's gradient norms where they are known), ``percentile`` (90).
    """

    name: ClassVar[str] = "gradient-clipping"
    title: ClassVar[str] = "gradient clipping at the measured percentile"
    causes: ClassVar[tuple[str, ...]] = ("learning-rate",)
    signal: ClassVar[str] = GRADIENT_SPIKE
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "one norm over all gradients per step"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The line before ``optimizer.step()``."""
        norm = options.get("norm") or measured_norm(signals, float(options.get("percentile", 90.0)))
        limit = f"{norm:.3g}" if norm else "max_norm  # the 90th percentile of the norms you log"
        return (
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit})"
            if norm
            else (
                "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)  # the 90th percentile of the norms you log"
            )
        )

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``clip``: the limit of the norm, or ``clip_percentile`` when it is to be measured in training."""
        if options.get("norm"):
            return {"clip": positive(options, "norm", 1.0)}
        norm = measured_norm(options.get("signals"), float(options.get("percentile", 90.0)))
        return {"clip": norm} if norm else {"clip_percentile": positive(options, "percentile", 90.0)}


def measured_norm(signals: Signals | None, percentile: float) -> float | None:
    """A percentile of the run's gradient norms, or None when none were recorded."""
    import numpy as np

    if signals is None:
        return None
    values = [series.values for series in signals.over_steps(GRADIENT_NORM)]
    finite = np.concatenate(values)[np.isfinite(np.concatenate(values))] if values else np.empty(0)
    return float(np.percentile(finite, percentile)) if finite.size else None
