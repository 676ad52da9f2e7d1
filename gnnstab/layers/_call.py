"""What one call of an attention layer was given and has made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Call:
    """The tensors of one call of an attention layer, detached; never kept beyond the call.

    N_s, N_t: source and target nodes (equal unless bipartite), E edges, H heads, C channels per head.
    """

    x_source: Tensor
    """(N_s, D_s) source node features as the layer received them."""

    x_target: Tensor
    """(N_t, D_t) target node features."""

    index_source: Tensor
    """(E,) source node of every edge, self-loops that the layer adds included."""

    index_target: Tensor
    """(E,) target node of every edge, the softmax' group."""

    edge_attr: Tensor | None
    """(E, D_e) edge features."""

    score: Tensor
    """(E, H) scores exactly as softmax received them."""

    attention: Tensor
    """(E, H) softmax output, before dropout."""

    output: Tensor
    """(N_t, H·C) or (N_t, C) what the layer returned."""

    gate: Tensor | None = None
    """(N_t, 1) β after the sigmoid, when the gate is on."""

    message: Tensor | None = None
    """(N_t, H·C) or (N_t, C) aggregated message before the skip, where observed."""

    groups: int | None = None
    """Number of groups that ``index_target`` counts, where it is not that of the target nodes: several node types or relations."""
