"""A normalisation that takes away how large the numbers of a graph are: they are doubled on a copy, and the output stays.

Behind a pooling that adds up, that is how many nodes a graph has: no gradient leads along the size of what was pooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.errors import let_through
from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._calls import Call
from gnnstab.probe.places._padding import padding_mask
from gnnstab.probe.places._passes import Passes, Row, moved
from gnnstab.probe.replaying.evaluating import by_running_statistics
from gnnstab.probe.replaying.replica import mapped, tensors_in
from gnnstab.records.vocabulary import PLACE_SIZE_RESPONSE

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_VARIES = 0.1
"""Standard deviation of ln(size) over the graphs from which on sizes differ."""

_GONE = 0.1
"""Share of it behind a normalisation up to which that has taken the sizes away."""

_COUNTS = 0.9
"""Correlation of ln(size) with ln(number of nodes) from which on a pooling has added up."""


def keep_gradients(seen: ForwardView) -> None:
    """Before the backward: what norms behind a pooling are given keeps its gradient."""
    for call, _ in _pooled(seen):
        if call.entering[0].requires_grad:
            call.entering[0].retain_grad()


def counted(seen: ForwardView, gradient: Tensor | None) -> Iterator[Row]:
    """After a backward: norms of what was summed up over the nodes of every graph, and the share of its gradient along it.

    Nothing where the batch holds other numbers of each graph, which may tell how many nodes it has.
    """
    beside = (t for n, t in seen.batch.items() if not is_target(n) and n.rpartition(".")[2] not in ("ptr", "batch"))
    beside = (t for t in beside if t.dim() == 2 and t.is_floating_point())
    for call, count in _pooled(seen):
        pooled, told = call.entering[0].detach().double(), call.entering[0].grad
        if gradient is None or len(gradient) != len(count) or told is None or any(len(t) == len(count) for t in beside):
            continue
        size, many = pooled.square().mean(1).clamp(min=1e-300).log() / 2, count.double().log()
        if len(size) > 1 and float(size.std()) > _VARIES and _correlation(size, many) > _COUNTS:
            along = (pooled * told).sum(1) / (pooled.norm(dim=1) * told.double().norm(dim=1)).clamp(min=1e-300)
            detail = {"follows": _follows(many, gradient), "graphs": len(count), "counts": True}
            yield PLACE_SIZE_RESPONSE, call.name, float(along.square().mean().sqrt()), detail


def _pooled(seen: ForwardView) -> Iterator[tuple[Call, Tensor]]:
    """Normalisations of one row for each graph, and the number of nodes (graphs,)."""
    mask = padding_mask(seen.batch)
    count = None if mask is None else mask[1].sum(1)
    count = count if seen.graphs is None else torch.bincount(seen.graphs)
    for call in seen.calls.all if count is not None else ():
        given = call.entering[0] if call.entering else None
        if (
            call.normalises
            and given is not None
            and given.dim() == 2
            and count is not None
            and len(given) == len(count)
        ):
            yield call, count


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1].nan_to_num(0.0))


def _follows(size: Tensor, gradient: Tensor) -> float:
    """Correlation over the graphs between a size and the column of what comes back from the loss that varies most."""
    wanted = gradient.detach().double().flatten(1) if gradient.dim() > 1 else gradient.detach().double()[:, None]
    return abs(_correlation(size, wanted[:, wanted.var(0).argmax()]))


def rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seen: ForwardView,
    gradient: Tensor | None,
    rng: Any,
) -> Iterator[Row]:
    """Change of the output when the numbers of every second graph are doubled; ``model`` is a copy and left so.

    Only where a normalisation has made graphs of different sizes equally large. ``follows``: correlation over the graphs between the
    size and ``gradient`` (graphs, …), what comes back from the loss to the output, which holds what the output lacks; ``graphs``.
    """
    graphs = seen.graphs
    if graphs is None or gradient is None or len(gradient) != int(graphs.max()) + 1:
        return
    erased = next(_erased(seen, graphs), None)
    if erased is None or not by_running_statistics(model):
        return
    name, size = erased
    twice = 1.0 + (graphs % 2)

    def own(tensor: Tensor) -> bool:
        return tensor.is_floating_point() and tensor.dim() > 0 and len(tensor) == len(graphs)

    def changed(tensor: Tensor) -> Tensor:
        return tensor * twice.view(-1, *(1,) * (tensor.dim() - 1)).to(tensor.dtype) if own(tensor) else tensor

    if not any(own(tensor) for _, tensor in tensors_in([*args, *kwargs.values()])):
        return  # Nodes that ids alone describe have no numbers to double.

    run = Passes(model, rng)
    try:
        response = moved(run(args, kwargs), run(*mapped((args, dict(kwargs)), changed)))
    except Exception as error:  # A stranger's forward may refuse other numbers, and says so in any way.
        let_through(error)
        return
    yield PLACE_SIZE_RESPONSE, name, response, {"follows": _follows(size, gradient), "graphs": len(gradient)}


def _erased(seen: ForwardView, graphs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Normalisations that give back graphs of one size, and ln of the size of each graph before."""
    for call in seen.calls.all:
        pair = [
            next((t for t in ts if t.dim() == 2 and len(t) == len(graphs)), None)
            for ts in (call.entering, call.leaving)
        ]
        before, after = (None if t is None else _sizes(t, graphs) for t in pair)
        if call.normalises and before is not None and after is not None:
            spread = float(before.std()) if len(before) > 1 else 0.0
            if spread > _VARIES and float(after.std()) < _GONE * spread:
                yield call.name, before


def _sizes(states: Tensor, graphs: Tensor) -> Tensor:
    """ln of the RMS (graphs,) of the numbers of every graph."""
    squares = states.detach().double().square().mean(1, keepdim=True)
    first = torch.zeros(int(graphs.max()) + 1, dtype=torch.long, device=graphs.device)
    first[graphs] = torch.arange(len(graphs), device=graphs.device)
    return numbers.graph_means(squares, graphs)[first, 0].clamp(min=1e-300).log() / 2
