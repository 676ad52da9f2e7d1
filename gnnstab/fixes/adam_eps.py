"""Adam's eps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gnnstab.fixes.training_fix import TrainingFix, positive
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OPTIMIZER_BELOW_EPS_SHARE


class AdamEps(TrainingFix):
    """A smaller eps, so that small gradients are not damped away. Options: ``eps`` (1e-8)."""

    name: ClassVar[str] = "adam-eps"
    title: ClassVar[str] = "smaller Adam eps"
    causes: ClassVar[tuple[str, ...]] = ("adam-epsilon",)
    signal: ClassVar[str] = OPTIMIZER_BELOW_EPS_SHARE
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "none; larger steps where gradients are tiny"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The optimizer's ``eps=``."""
        return f"torch.optim.Adam(model.parameters(), lr=lr, eps={positive(options, 'eps', 1e-8):g})"

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """``eps``."""
        return {"eps": positive(options, "eps", 1e-8)}
