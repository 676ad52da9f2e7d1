"""LayerNorm after a sum aggregation, with a root term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.aggregation import aggregator_names, aggregator_widths
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import edited_copy, sum_aggregators
from gnnstab.fixes.self_term import add_self_term
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY

if TYPE_CHECKING:
    from torch import nn


class NormAfterSum(Fix):
    """h_i = LayerNorm(Σ_j m_ij) + W·x_i. A norm inside the message, before the sum, does not help.

    Options: ``root`` (True; False leaves the root term out), ``batch``, ``only``, ``seed`` as in
    ``mean-aggregation-root``.
    """

    name: ClassVar[str] = "norm-after-sum"
    title: ClassVar[str] = "LayerNorm after the sum, with a root term"
    causes: ClassVar[tuple[str, ...]] = ("sum-aggregation", "attention-explosion")
    signal: ClassVar[str] = ATTENTION_ENTROPY
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "one LayerNorm and one linear layer"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor and the lines of forward."""
        root = options.get("root", True)
        wide, narrow = aggregator_widths(layers)
        lines = [f"# in {aggregator_names(layers)}", f"self.sum_norm = nn.LayerNorm({narrow})  # in __init__"]
        if root:
            lines.append(f"self.lin_root = nn.Linear({wide}, {narrow})  # in __init__")
        term = " + self.lin_root(x)" if root else ""
        return "\n".join([*lines, f"out = self.sum_norm(out){term}  # in forward, after out = self.propagate"])

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Add ``sum_norm`` and ``root_term`` to the module's output."""
        with edited_copy(model, options.get("seed", 0)) as copy:
            modules = [m for _, m in sum_aggregators(copy, options.get("only"))]
            add_self_term(copy, modules, options.get("batch"), norm=True, root=bool(options.get("root", True)))
            return copy
