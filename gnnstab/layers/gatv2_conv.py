"""GATv2Conv: scores a·LeakyReLU(W_l x_j + W_r x_i + e), without a division by √C."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from gnnstab.layers.additive import AdditiveLayer
from gnnstab.layers.base import Call, StoredLayer
from gnnstab.layers.maps import in_blocks, per_head, project
from gnnstab.layers.pyg_layer import GAT_DEFAULTS, Factor
from gnnstab.records.vocabulary import LOGIT_FROBENIUS

if TYPE_CHECKING:
    from torch import Tensor, nn

SPREAD = 0.52
"""Variance of LeakyReLU(z) within a target over that of z, z standard normal, at a slope of 0.2: derived, (1 + 0.2²)/2."""


class GATv2ConvLayer(AdditiveLayer):
    """`torch_geometric.nn.GATv2Conv` and its subclasses."""

    kind = "GATv2Conv"
    roles = {
        "score": ("att", "lin_r"),
        "value": ("lin_l",),
        "edge": ("lin_edge",),
        "skip": ("res",),
    }
    vectors = ("att",)
    factors = (Factor("att", 1),)
    source_maps = ("lin_l",)
    target_maps = ("lin_r",)
    signature = re.compile(r"(?:(?P<layer>.*?)\.)?(?P<own>att|bias|lin_[lr]\.(?:weight|bias)|(?:lin_edge|res)\.weight)")
    essential = frozenset({"att", "lin_l.weight", "lin_r.weight"})
    telling = frozenset({"att"})
    absent = "no att, lin_l and lin_r side by side"
    width_names = ("att", "bias")
    static = "√.52·‖diag(a)·W_l‖_F, within 1.3 × of the measured spread at initialisation"
    defaults = {
        **GAT_DEFAULTS,
        "add_self_loops": True,
        "edge_dim": 0,
        "bias": True,
        "share_weights": False,
        "residual": False,
    }

    def scores(self, module: nn.Module, call: Call, x_source: Tensor, x_target: Tensor) -> Tensor | None:
        """On the edges of a call, in blocks."""
        conv: Any = module
        source = self._heads(conv, project(conv.lin_l, x_source))
        target = self._heads(conv, project(conv.lin_r, x_target))
        edge = self._edge_term(conv, call)
        if source is None or target is None or (edge is None and call.edge_attr is not None):
            return None

        def part(edges: slice) -> Tensor:
            sent = source.index_select(0, call.index_source[edges])
            sent += target.index_select(0, call.index_target[edges])
            return self._score(conv, sent if edge is None else sent + edge[edges])

        return in_blocks(call.index_target.numel(), int(conv.heads * conv.out_channels), part)

    @staticmethod
    def _score(conv: Any, summed: Tensor) -> Tensor:
        import torch.nn.functional as F

        score: Tensor = (F.leaky_relu(summed, conv.negative_slope) * conv.att.to(summed.dtype)).sum(dim=-1)
        return score

    def traced_scores(
        self, module: Any, *args: Any, x_j: Any, x_i: Any, edge_attr: Any, index: Any, ptr: Any, dim_size: Any
    ) -> tuple[Tensor, Tensor | None]:
        """From what ``edge_update`` received."""
        from torch_geometric.utils import softmax

        summed = x_i + x_j
        if edge_attr is not None:
            summed = summed + self._edges(module, edge_attr)
        score = self._score(module, summed)
        return score, softmax(score, index, ptr, dim_size)

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """``logit.frobenius``, the spread within a target at an input of RMS 1: √.52·‖diag(a)·W_l‖_F.

        1.08 to 1.17 times the measured spread at initialisation.
        """
        vector = stored.tensors["att"].detach().double().view(heads, -1, 1)
        weighted = vector * per_head(stored.tensors["lin_l.weight"], None, heads)
        return {LOGIT_FROBENIUS: [math.sqrt(SPREAD) * value for value in weighted.flatten(1).norm(dim=1).tolist()]}
