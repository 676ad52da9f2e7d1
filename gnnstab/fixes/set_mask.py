"""Masked entries that are set, and rows that always keep one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.operation_behind import operation_behind, spot
from gnnstab.records import LayerFacts, Signals


class SetMask(ByHand):
    """Set masked entries in place of multiplying them, and leave one entry open in every row of a softmax."""

    name: ClassVar[str] = "set-mask"
    title: ClassVar[str] = "masked entries are set, not multiplied"
    causes: ClassVar[tuple[str, ...]] = ("masking",)
    signal: ClassVar[str] = "loss"
    cost: ClassVar[str] = "none"
    where: ClassVar[str] = "the line that masks"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The line that masks, rewritten for what went wrong there."""
        operation = operation_behind(signals)
        if operation.get("kind") == "all-masked":
            change = (
                "empty = ~mask.any(-1, keepdim=True)  # rows in which nothing is left\n"
                "weights = scores.masked_fill(~mask & ~empty, float('-inf')).softmax(-1).masked_fill(empty, 0.0)"
            )
        elif not operation:
            change = "scores = scores.masked_fill(~mask, float('-inf'))  # in place of scores * mask: exp(0) is 1"
        else:
            change = "values = values.masked_fill(~mask, 0.0)  # in place of values * mask: 0 · inf and 0 · NaN are NaN"
        return spot(operation) + change
