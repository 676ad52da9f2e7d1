"""Nodes that nothing tells apart: all of a component get one answer, and the loss asks for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _numbers as numbers
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


def _differs(tensor: Tensor, group: Tensor) -> bool:
    """True where rows differ within a group."""
    flat = tensor.detach().reshape(len(tensor), -1).double()
    return bool(((flat - numbers.graph_means(flat, group)).abs() > 1e-6 * flat.abs().max()).any())


def _one_row(looked_up: list[Tensor], nodes: int) -> bool:
    return any(len(t) == nodes and bool((t == t[:1]).all()) for t in looked_up if t.dim() > 1)
