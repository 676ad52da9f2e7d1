"""Nodes, or queries of a set, that nothing tells apart: all of a component get one answer, and the loss asks for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._calls import Calls, watched
from gnnstab.probe.places._zeros import moved
from gnnstab.records.vocabulary import PLACE_SHARED_ANSWERS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_DIGITS = 1e4
"""Parts of the output's RMS that two answers are told apart by."""

_FEWEST = 3
"""Nodes that share an answer, on average, from which on they are slots of a graph."""


def rows(seen: ForwardView, gradient: Tensor | None) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Share of the spread of ``gradient`` (nodes, …), which holds what the loss asks of the output, among nodes of one answer.

    Only where every edge joins nodes of one answer and nothing that the forward is given differs between them. ``tables``: those
    of which every node looks up one and the same row.
    """
    answers = next((t for t in seen.outputs if gradient is not None and t.shape == gradient.shape and t.dim()), None)
    edges = next((t for n, t in seen.batch.items() if n.rpartition(".")[2] == "edge_index" and t.dim() == 2), None)
    if answers is None or gradient is None or edges is None or len(edges) != 2 or not edges.numel():
        return
    nodes, flat = len(answers), answers.detach().reshape(len(answers), -1).double()
    size = float(flat.square().mean().sqrt())
    if (
        int(edges.max()) >= nodes
        or not size > 0
        or 2 * int((torch.bincount(edges.flatten(), minlength=nodes) > 0).sum()) < nodes
    ):
        return  # Nodes that no edge tells of others are isolated.
    distinct, group = torch.unique((flat / size * _DIGITS).round(), dim=0, return_inverse=True)
    if len(distinct) * _FEWEST > nodes or bool((group[edges[0]] != group[edges[1]]).any()):
        return
    own = (t for n, t in seen.batch.items() if n in seen.arguments and not is_target(n) and t.dim() and len(t) == nodes)
    if any(_differs(t, group) for t in own):
        return
    asked = gradient.detach().reshape(nodes, -1).double()
    total = float((asked - asked.mean(0)).square().sum())
    if total > 0:
        within = float((asked - numbers.graph_means(asked, group)).square().sum()) / total
        tables = [
            call.name
            for call in seen.calls.all
            if isinstance(call.module, nn.Embedding) and _one_row(call.leaving, nodes)
        ]
        yield PLACE_SHARED_ANSWERS, "output", within, {"answers": len(distinct), "nodes": nodes, "tables": tables}


def alike_queries(
    model: nn.Module, again: Callable[[], Any], seen: ForwardView, gradient: Tensor | None
) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Share of the spread of ``gradient`` (sets, queries, …) within sets, where attention is given one and the same query several times.

    Only where all answers of a set are one, those of sets differ, and queries and answers stay alike with random numbers added to all parameters.
    """
    if len(seen.outputs) != 1 or gradient is None or seen.outputs[0].shape != gradient.shape or gradient.dim() < 2:
        return
    answers, shape = seen.outputs[0].detach(), gradient.shape[:2]
    spread = (answers - answers[:1]).abs().max() * _DIGITS > answers.abs().max()
    if shape[1] < _FEWEST or not _alike(answers) or not bool(spread):
        return
    name = _queried(seen.calls, shape)
    if not name:
        return
    with moved(model), watched(model) as calls:
        again()
    ends = [t for call in calls.all for t in call.leaving if t.dim() > 2 and t.shape[:2] == shape]
    if _queried(calls, shape) != name or not ends or not _alike(ends[-1]):
        return
    asked = gradient.detach().double()
    total = float((asked - asked.mean((0, 1))).square().sum())
    if total > 0:
        within = float((asked - asked.mean(1, keepdim=True)).square().sum()) / total
        yield PLACE_SHARED_ANSWERS, name, within, {"answers": shape[0], "rows": shape.numel(), "queries": shape[1]}


def _queried(calls: Calls, shape: torch.Size) -> str:
    """The first module that is given one query for all of a set beside keys that differ; queries (sets, queries, width)."""
    for call in calls.all:
        first = getattr(call.module, "batch_first", True)
        given = [t if first else t.transpose(0, 1) for t in call.entering if t.dim() == 3]
        if len(given) > 1 and given[0].shape[:2] == shape and _alike(given[0]) and not _alike(given[1]):
            return call.name
    return ""


def _alike(sets: Tensor) -> bool:
    """True where all rows of a set are one, up to rounding; (sets, rows, …)."""
    return bool(((sets - sets[:, :1]).abs() * _DIGITS <= sets.abs().max()).all())


def _differs(tensor: Tensor, group: Tensor) -> bool:
    """True where rows differ within a group."""
    flat = tensor.detach().reshape(len(tensor), -1).double()
    return bool(((flat - numbers.graph_means(flat, group)).abs() > 1e-6 * flat.abs().max()).any())


def _one_row(looked_up: list[Tensor], nodes: int) -> bool:
    return any(len(t) == nodes and bool((t == t[:1]).all()) for t in looked_up if t.dim() > 1)
