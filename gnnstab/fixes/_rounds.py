"""The change for rounds of one layer that leave nothing but the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.printing import on_one_line, written
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OPTIMIZER_UNDONE


def smoothed_rounds(signals: Signals) -> list[str]:
    """The layers whose rounds smooth everything, as steps on a copy have shown."""
    told = (s.detail for s in signals.find(OPTIMIZER_UNDONE) if s.detail.get("cause") == "oversmoothing")
    return [str(name) for one in told for name in one.get("names", ())]


class MixFirstState(ByHand):
    """Mix a part of the first state into each round, so that no number of rounds takes it away."""

    name = "mix-first-state"
    title = "a part of the first state in each round"
    causes = ("oversmoothing",)
    signal = OPTIMIZER_UNDONE
    where = "the loop over the rounds"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where rounds of one layer keep the model from learning."""
        return bool(smoothed_rounds(signals))

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: Mapping[str, Any]) -> str:
        called = written("self", on_one_line(next(iter(smoothed_rounds(signals)), "conv")).split("."))
        return (
            "first = h  # in front of the rounds; fewer of them may do as well\n"
            f"h = 0.8 * {called}(h, edge_index) + 0.2 * first  # in each round, in place of h = {called}(h, edge_index)"
        )
