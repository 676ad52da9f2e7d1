"""Non-finite entries out of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.operation_behind import operation_behind
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import FEATURE_NON_FINITE


class CleanData(ByHand):
    """Find and mend the NaN and Inf in the features where they come into being, and refuse them from then on."""

    name: ClassVar[str] = "clean-data"
    title: ClassVar[str] = "no NaN or Inf in the data"
    causes: ClassVar[tuple[str, ...]] = ("non-finite-data",)
    signal: ClassVar[str] = FEATURE_NON_FINITE
    cost: ClassVar[str] = "one pass over the data"
    where: ClassVar[str] = "the data"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The check to put where the data is made, for the tensor that held the value."""
        tensor = operation_behind(signals).get("tensor")
        name = str(tensor["name"]) if isinstance(tensor, dict) and str(tensor.get("name", "")).isidentifier() else "x"
        return (
            f"bad = ~torch.isfinite(data.{name})\n"
            "if bad.any():  # where the data is made: mend the source, do not hide it\n"
            '    raise ValueError(f"NaN or Inf in rows {bad.nonzero()[:5, 0].tolist()}")'
        )
