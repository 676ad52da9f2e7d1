"""The two ends of every edge, whatever form the adjacency has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def edge_ends(edge_index: Any, flow: str = "source_to_target") -> tuple[Tensor, Tensor, Tensor | None]:
    """Source (E,), target (E,) and, for a sparse adjacency with more than one value per edge, the values (E, D).

    A sparse adjacency is transposed by the convention of PyG: its rows are the targets.
    """
    from torch_geometric.typing import SparseTensor
    from torch_geometric.utils import is_torch_sparse_tensor

    if isinstance(edge_index, SparseTensor):
        row, column, value = edge_index.coo()
        return column, row, value
    if is_torch_sparse_tensor(edge_index):
        row, column, values = _sparse_ends(edge_index)
        return column, row, values if values.dim() > 1 else None
    plain = plain_tensor(edge_index)
    return (plain[0], plain[1], None) if flow == "source_to_target" else (plain[1], plain[0], None)


def with_loops(edge_index: Any, nodes: int, edge_attr: Any = None, fill: Any = None) -> tuple[Any, Any]:
    """Edges and features after a layer has put its own self-loops in the place of those that it was given.

    A sparse adjacency of torch_sparse stays as it is: the layer fills its diagonal.
    """
    from torch import Tensor
    from torch_geometric.utils import add_self_loops, remove_self_loops

    if not isinstance(edge_index, Tensor):
        return edge_index, edge_attr
    edge_index, edge_attr = remove_self_loops(edge_index, edge_attr)
    pair: tuple[Any, Any] = add_self_loops(edge_index, edge_attr, fill_value=fill, num_nodes=nodes)
    return pair


def fewest(x: Any) -> int:
    """Number of nodes, of the smaller side where source and target nodes are given apart."""
    return min(int(one.size(0)) for one in (x if isinstance(x, (tuple, list)) else (x,)) if one is not None)


def plain_tensor(tensor: Tensor) -> Tensor:
    """The same numbers as a tensor of torch's own class; PyG's EdgeIndex and Index wrap one instead of being one."""
    from torch import Tensor
    from torch_geometric import EdgeIndex, Index

    if isinstance(tensor, (EdgeIndex, Index)):
        own: Tensor = tensor.as_tensor()
        return own
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _sparse_ends(adjacency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row (E,), column (E,), values.

    torch_geometric's `to_edge_index` marks the adjacency as coalesced in place, and autograd then refuses the backward
    of what the layer has saved; so the parts are only read here.
    """
    import torch

    if adjacency.layout is torch.sparse_coo:
        indices = adjacency._indices()
        return indices[0], indices[1], adjacency._values()
    rows_first = adjacency.layout is torch.sparse_csr
    pointer = adjacency.crow_indices() if rows_first else adjacency.ccol_indices()
    along = adjacency.col_indices() if rows_first else adjacency.row_indices()
    across = torch.arange(len(pointer) - 1, device=pointer.device).repeat_interleave(
        pointer.diff(), output_size=len(along)
    )
    return (across, along, adjacency.values()) if rows_first else (along, across, adjacency.values())
