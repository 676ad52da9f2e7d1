"""What a normalisation over the nodes of a graph takes from the pooling behind it: the mean of every graph."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _numbers as numbers

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_FEWEST = 8
"""Graphs from which on a correlation over them says something."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """For every such normalisation: how much of the differences between graphs is left in what is pooled.

    The value is the variance of the pooled numbers over the graphs, relative to what nodes drawn at random would leave
    (within-graph variance over the number of nodes): about 1 without any difference between graphs, and nearly 0 where the mean
    was taken away. The detail holds how well the targets follow the means before it.
    """
    graphs = seen.graphs
    if graphs is None:
        return
    count = int(graphs.max()) + 1
    sizes = torch.bincount(graphs, minlength=count)
    if count < 2 or not bool((sizes > 1).all()):
        return
    pooled = _pooled(seen, count, len(graphs))
    if pooled is None:
        return
    for call in seen.calls.all:
        states = next((t for t in call.leaving if t.dim() == 2 and len(t) == len(graphs)), None)
        entering = next((t for t in call.entering if t.dim() == 2 and len(t) == len(graphs)), None)
        if not call.per_graph or states is None or entering is None:
            continue
        left = _between(pooled.double(), states.double(), graphs, sizes)
        if math.isfinite(left):
            detail = {"target_follows": _follows(seen, entering, count)}
            yield "place.graph_difference", call.name, left, detail


def _pooled(seen: ForwardView, count: int, nodes: int) -> Tensor | None:
    """The first tensor (graphs, channels) that a module is given, or that is returned."""
    if count == nodes:
        return None
    given = (t for call in seen.calls.all if call.computes or call.normalises for t in call.entering)
    return next((t.detach() for t in (*given, *seen.outputs) if t.dim() == 2 and len(t) == count), None)


def _between(pooled: Tensor, states: Tensor, graphs: Tensor, sizes: Tensor) -> float:
    within = (states - numbers.graph_means(states, graphs)).square().mean()
    expected = within * (1.0 / sizes.double()).mean()
    return float(pooled.var(0).mean() / expected) if float(expected) > 0 and len(pooled) > 1 else math.nan


def _follows(seen: ForwardView, entering: Tensor, count: int) -> float:
    """Largest |correlation| over the graphs between a target and the mean of a channel before the normalisation; 0 unknown."""
    assert seen.graphs is not None
    found = [t for name, t in seen.batch.items() if is_target(name) and t.numel() == count]
    if not found or count < _FEWEST:
        return 0.0
    target = found[0].detach().reshape(-1).double()
    first = torch.zeros(count, dtype=torch.long, device=target.device)
    first[seen.graphs] = torch.arange(len(seen.graphs), device=target.device)
    means = numbers.graph_means(entering.detach().double(), seen.graphs)[first]
    # The channel that varies most speaks for all: the largest of many correlations would be large by chance.
    channel = means[:, int(means.var(0).argmax())]
    together = torch.corrcoef(torch.stack([target, channel]))[0, 1].abs()
    return float(together) if math.isfinite(float(together)) else 0.0
