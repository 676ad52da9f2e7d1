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
        tensor = tensor if isinstance(tensor, dict) else {}
        events = signals.events if signals is not None else ()
        if tensor.get("owner") == "parameter" or any(e.stage == "weight" for e in events):
            return (
                "bad = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]\n"
                "if bad:  # after the weights are loaded\n"
                '    raise ValueError(f"NaN or Inf in {bad}")'
            )
        *stores, name = str(tensor.get("name") or "x").split(".")
        named = all(part.isidentifier() for part in (*stores, name))
        data = "".join(f'["{store}"]' for store in stores) + f".{name}" if named else ".x"
        return (
            f"bad = ~torch.isfinite(data{data})\n"
            "if bad.any():  # where the data is made: mend the source, do not hide it\n"
            '    raise ValueError(f"NaN or Inf in rows {bad.nonzero()[:5, 0].tolist()}")'
        )
