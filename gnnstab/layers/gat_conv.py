"""GATConv: scores LeakyReLU(a_s·W x_j + a_t·W x_i + a_e·e), the same ranking of sources for every target."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gnnstab.layers.additive import AdditiveLayer
from gnnstab.layers.base import Call, StoredLayer
from gnnstab.layers.maps import per_head, project
from gnnstab.layers.pyg_layer import GAT_DEFAULTS, Factor, first
from gnnstab.records import LayerFacts
from gnnstab.records.vocabulary import LOGIT_FROBENIUS

if TYPE_CHECKING:
    from torch import Tensor, nn


class GATConvLayer(AdditiveLayer):
    """`torch_geometric.nn.GATConv` and its subclasses."""

    kind = "GATConv"
    roles = {
        "score": ("att_src", "att_dst", "att_edge", "lin_dst"),
        "value": ("lin", "lin_src"),
        "edge": ("lin_edge",),
        "skip": ("res",),
    }
    vectors = ("att_src", "att_dst", "att_edge")
    factors = (Factor("att_src", 1), Factor("att_dst", 1), Factor("att_edge", 1))
    source_maps = ("lin", "lin_src")
    target_maps = ("lin", "lin_dst")
    signature = re.compile(
        r"(?:(?P<layer>.*?)\.)?(?P<own>att_(?:src|dst|edge)|bias|(?:lin|lin_src|lin_dst|lin_edge|res)\.weight)"
    )
    essential = frozenset({"att_src", "att_dst"})
    absent = "no att_src and att_dst side by side"
    width_names = ("att_src", "bias")
    static = "‖Wᵀa‖, within 2 × of the measured spread at initialisation"
    defaults = {**GAT_DEFAULTS, "add_self_loops": True, "edge_dim": 0, "bias": True, "residual": False}

    def scores(self, module: nn.Module, call: Call, x_source: Tensor, x_target: Tensor) -> Tensor | None:
        """On the edges of a call."""
        import torch.nn.functional as F

        conv: Any = module
        source = self._heads(conv, project(first(conv, self.source_maps), x_source))
        target = self._heads(conv, project(first(conv, self.target_maps), x_target))
        if source is None or target is None:
            return None
        sent = (source * conv.att_src.to(source.dtype)).sum(dim=-1).index_select(0, call.index_source)
        score = sent + (target * conv.att_dst.to(target.dtype)).sum(dim=-1).index_select(0, call.index_target)
        if call.edge_attr is not None and conv.lin_edge is not None:
            edge = self._edge_term(conv, call)
            if edge is None:
                return None
            score = score + (edge * conv.att_edge.to(edge.dtype)).sum(dim=-1)
        return F.leaky_relu(score, conv.negative_slope)

    def traced_scores(
        self, module: Any, *args: Any, alpha_j: Any, alpha_i: Any, edge_attr: Any, index: Any, ptr: Any, dim_size: Any
    ) -> tuple[Tensor, Tensor | None]:
        """From what ``edge_update`` received."""
        import torch.nn.functional as F
        from torch_geometric.utils import softmax

        score = alpha_j if alpha_i is None else alpha_j + alpha_i
        if edge_attr is not None and module.lin_edge is not None:
            score = score + (self._edges(module, edge_attr) * module.att_edge).sum(dim=-1)
        score = F.leaky_relu(score, module.negative_slope)
        return score, softmax(score, index, ptr, dim_size)

    def more(self, conv: Any) -> dict[str, Any]:
        """Whether target nodes have a map of their own, said where they have."""
        own = getattr(conv, "lin_dst", None)
        return {} if own is None or own is getattr(conv, "lin_src", None) else {"own_target_map": True}

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """Early releases keep one map under both names."""
        facts = super().stored_facts(stored, known)
        own = stored.tensors.get("lin_dst.weight")
        if own is not None and not own.equal(self._weight(stored, self.source_maps)):
            facts["options"]["own_target_map"] = True
        return facts

    def present(self, parameter: str, facts: LayerFacts) -> bool:
        """A map of target nodes alone only where they have one."""
        return super().present(parameter, facts) and (parameter != "lin_dst" or bool(facts.get("own_target_map")))

    def lookalike(self, stored: StoredLayer) -> str:
        """Layers of several relations keep such vectors beside maps of other names."""
        mapped = any(f"{name}.weight" in stored.tensors for name in self.source_maps)
        targets = any(f"{name}.weight" in stored.tensors for name in self.target_maps)
        return "" if mapped and targets else "has att_src and att_dst but no lin: not PyG's GATConv"

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """``logit.frobenius``, the spread within a target at an input of RMS 1: ‖u‖ with u = W_hᵀ a_s.

        LeakyReLU makes the measured spread at initialisation 1.5 to 1.9 times smaller.
        """
        vector = stored.tensors["att_src"].detach().double().view(heads, 1, -1)
        direction = vector @ per_head(self._weight(stored, self.source_maps), None, heads)
        return {LOGIT_FROBENIUS: direction.flatten(1).norm(dim=1).tolist()}
