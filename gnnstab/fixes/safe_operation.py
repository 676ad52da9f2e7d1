"""An operation that stays defined in place of one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.operation_behind import operation_behind, spot
from gnnstab.records import LayerFacts, Signals
from gnnstab.rules.operation_advice import advice


class SafeOperation(ByHand):
    """Write what is meant by a function that is defined everywhere, or keep its operand where it is."""

    name: ClassVar[str] = "safe-operation"
    title: ClassVar[str] = "an operation that is defined for every operand"
    causes: ClassVar[tuple[str, ...]] = ("undefined-operation",)
    signal: ClassVar[str] = "loss"
    cost: ClassVar[str] = "none"
    where: ClassVar[str] = "the line that made the value"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """What to write in place of the operation that an event names; the usual ones where none is known."""
        operation = operation_behind(signals)
        said = advice(operation, "undefined-operation")
        if said:
            return f"{spot(operation)}# {said}"
        return (
            "x.clamp_min(1e-12).log()                   # in place of x.log(); logsigmoid and log_softmax where they fit\n"
            "a / b.clamp_min(1e-12)                     # in place of a / b\n"
            "(x.square().sum(-1) + 1e-12).sqrt()        # in place of x.norm(dim=-1): its derivative at zero\n"
            "(e - e_max[target]).exp()                  # in place of e.exp(): e_max is the maximum of each group"
        )
