"""A path from the loss to every parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gnnstab.fixes.by_hand import ByHand
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OPTIMIZER_NEVER_UPDATED


class Reconnect(ByHand):
    """Take ``detach()`` and ``no_grad()`` out of forward, and give the optimizer every parameter."""

    name: ClassVar[str] = "reconnect"
    title: ClassVar[str] = "a path from the loss to every parameter"
    causes: ClassVar[tuple[str, ...]] = ("never-updated-parameter",)
    signal: ClassVar[str] = OPTIMIZER_NEVER_UPDATED
    cost: ClassVar[str] = "none"
    where: ClassVar[str] = "forward or of the optimizer's parameters"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """What to look for, and the check to keep."""
        return (
            "# forward: no .detach(), .data or torch.no_grad() between the layers; the optimizer: model.parameters()\n"
            "loss.backward()\n"
            "assert all(p.grad is not None for p in model.parameters() if p.requires_grad)"
        )
