"""Mean aggregation together with a root term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.aggregation import aggregator_names, aggregator_widths, set_aggregation
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import edited_copy, sum_aggregators
from gnnstab.fixes.self_term import add_self_term
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY

if TYPE_CHECKING:
    from torch import nn


class MeanAggregationRoot(Fix):
    """h_i = mean_j(m_ij) + W·x_i: the scale no longer follows the in-degree, and every node keeps its own features.

    Options: ``batch`` (one batch; needed where the module does not declare its widths), ``only`` (names of layers; all
    modules that sum raw messages), ``seed`` (0).
    """

    name: ClassVar[str] = "mean-aggregation-root"
    title: ClassVar[str] = "mean aggregation with a root term"
    causes: ClassVar[tuple[str, ...]] = ("sum-aggregation", "attention-explosion")
    signal: ClassVar[str] = ATTENTION_ENTROPY
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "one linear layer; counts of neighbours are no longer seen"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor and the lines of forward."""
        return (
            f"# in {aggregator_names(layers)}\n"
            "super().__init__(aggr='mean')\n"
            f"self.lin_root = nn.Linear({', '.join(aggregator_widths(layers))})  # in __init__\n"
            "out = out + self.lin_root(x)  # in forward, after out = self.propagate"
        )

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the reduction and add ``root_term`` to the module's output."""
        with edited_copy(model, options.get("seed", 0)) as copy:
            modules = [m for _, m in sum_aggregators(copy, options.get("only"))]
            for module in modules:
                set_aggregation(module, "mean")
            add_self_term(copy, modules, options.get("batch"), norm=False, root=True)
            return copy
