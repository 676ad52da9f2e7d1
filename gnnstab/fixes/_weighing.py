"""The change for what an attention layer adds to its messages outside of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnnstab.fixes.by_hand import ByHand
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import PLACE_ATTENTION_SUM
from gnnstab.rules.gs401_sum_aggregation_growth import SumAggregationGrowth


class WeighMessages(ByHand):
    """Multiply all that a message holds by its attention weight, so that what is added up stays a mean."""

    name = "weigh-messages"
    title = "weights on all of the message"
    causes = ("sum-aggregation",)
    signal = PLACE_ATTENTION_SUM
    where = "the message of the attention layer"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where attention adds up what grows with the in-degree."""
        return bool(SumAggregationGrowth().of_attention(signals))

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: Mapping[str, Any]) -> str:
        grown = {s.layer for s in SumAggregationGrowth().of_attention(signals)}
        kinds = list(dict.fromkeys(layer.kind for layer in layers if layer.name in grown))
        return (
            f"# in the message of {', '.join(kinds) or 'the layer'}; att: what softmax returns\n"
            "return att * (v_j + e)  # in place of att * v_j + e: all that is added up"
        )
