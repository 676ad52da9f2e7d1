"""Another reduction over incoming messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import edited_copy, sum_aggregators
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import AGGREGATION_EXPONENT

if TYPE_CHECKING:
    from torch import nn


class Aggregation(Fix):
    """Exchanges a sum for another reduction. Alone it is no cure: the node loses the little that told it from others.

    Options: ``aggr`` (``mean``), ``only`` (names of layers; all modules that sum raw messages).
    """

    name: ClassVar[str] = "aggregation"
    title: ClassVar[str] = "another aggregation"
    causes: ClassVar[tuple[str, ...]] = ()
    signal: ClassVar[str] = AGGREGATION_EXPONENT
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "none; without a root term node identity fades as 1/degree"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor's ``aggr=``."""
        return f"super().__init__(aggr={options.get('aggr', 'mean')!r})  # in {aggregator_names(layers)}"

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the reduction of the modules that sum raw messages."""
        with edited_copy(model) as copy:
            for _, module in sum_aggregators(copy, options.get("only")):
                set_aggregation(module, options.get("aggr", "mean"))
            return copy


def set_aggregation(module: Any, aggr: str) -> None:
    """Change the reduction of a message-passing module in place."""
    from torch_geometric.nn.resolver import aggregation_resolver

    try:
        module.aggr_module = aggregation_resolver(aggr)
    except (ValueError, TypeError) as error:
        raise FixError(f"aggr={aggr!r} is no aggregation of PyG") from error
    module.aggr = aggr


def aggregator_widths(layers: Sequence[LayerFacts]) -> tuple[str, str]:
    """Input and output width of the layers that sum, as code; the names of the arguments where they were not seen."""
    found = {
        (f.in_channels[1] if f.in_channels else None, f.out_channels)
        for f in layers
        if not f.attention and f.aggregation in ("add", "sum")
    }
    wide, narrow = found.pop() if len(found) == 1 else (None, None)
    return str(wide or "in_channels"), str(narrow or "out_channels")


def aggregator_names(layers: Sequence[LayerFacts]) -> str:
    """``embed_layer (EmbedConv)``: the recorded layers that sum raw messages."""
    found = [f"{f.name} ({f.kind})" for f in layers if not f.attention and f.aggregation in ("add", "sum")]
    return ", ".join(found) or "the module that sums"
