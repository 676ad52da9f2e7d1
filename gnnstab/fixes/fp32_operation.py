"""One operation in float32 where the rest runs in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.operation_behind import operation_behind, spot
from gnnstab.records import LayerFacts, Signals


class Fp32Operation(ByHand):
    """Compute the loss, or the operation that left the range of half precision, in float32."""

    name: ClassVar[str] = "fp32-operation"
    title: ClassVar[str] = "the operation in float32"
    causes: ClassVar[tuple[str, ...]] = ("precision",)
    signal: ClassVar[str] = "loss"
    cost: ClassVar[str] = "twice the memory of its operands"
    where: ClassVar[str] = "the line that overflowed"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The lines around the operation that an event names."""
        operation = operation_behind(signals)
        if operation.get("place") == "model":
            change = "with torch.autocast(x.device.type, enabled=False):\n    y = self.module(x.float())"
        else:
            change = "with torch.autocast(output.device.type, enabled=False):\n    loss = criterion(output.float(), target.float())"
        return spot(operation) + change
