"""The two ends of every edge, whatever form the adjacency has."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import is_torch_sparse_tensor, to_edge_index


def edge_ends(edge_index: Any, flow: str = "source_to_target") -> tuple[Tensor, Tensor, Tensor | None]:
    """Source (E,), target (E,) and, for a sparse adjacency with more than one value per edge, the values (E, D).

    A sparse adjacency is transposed by the convention of PyG: its rows are the targets.
    """
    if isinstance(edge_index, SparseTensor):
        row, column, value = edge_index.coo()
        return column, row, value
    if is_torch_sparse_tensor(edge_index):
        ends, values = to_edge_index(edge_index)
        return ends[1], ends[0], values if values.dim() > 1 else None
    plain = edge_index.as_subclass(Tensor) if type(edge_index) is not Tensor else edge_index
    return (plain[0], plain[1], None) if flow == "source_to_target" else (plain[1], plain[0], None)
