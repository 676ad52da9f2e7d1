"""How far the nodes of a graph differ from each other: ‖X − mean‖_F / ‖X‖_F."""

from __future__ import annotations

from torch import Tensor

from gnnstab.probe.statistics._groups import compact, group_sizes, group_sum
from gnnstab.probe.statistics.numbers import exact, mean_where, square_sum, undefined, wide


def relative_difference(x: Tensor, batch: Tensor | None = None) -> Tensor:
    """‖X − mean‖_F / ‖X‖_F of ``x`` (N, D), 0-d, in [0, 1]: 0 when all nodes are equal.

    With ``batch`` (N,) it is taken per graph and averaged over the graphs of at least two nodes that are not all zero;
    a batch of another length does not belong to ``x`` and is left aside. NaN for fewer than two nodes and for X = 0:
    a signal that has vanished is not smooth.
    """
    if x.shape[0] < 2:
        return undefined(x)
    x = wide(x)
    if batch is None or batch.numel() != x.shape[0]:
        mean = x.mean(0, dtype=exact(x.device)).to(x.dtype)
        return (square_sum(x - mean) / square_sum(x)).sqrt()
    return _per_graph(x, compact(batch))


def _per_graph(x: Tensor, graph: Tensor) -> Tensor:
    nodes = x.shape[0]
    sizes = group_sizes(graph, nodes)
    mean = group_sum(x, graph, nodes) / sizes.clamp(min=1).to(x.dtype).unsqueeze(1)
    spread = group_sum(square_sum(x - mean.index_select(0, graph), dim=1), graph, nodes)
    energy = group_sum(square_sum(x, dim=1), graph, nodes)
    # Written so that a NaN energy counts as a graph: it then shows in the average.
    return mean_where((spread / energy).sqrt(), (sizes >= 2) & ~(energy == 0))
