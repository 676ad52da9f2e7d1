"""Whether the answer for one graph depends on its company: it runs in its batch, and once more alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from gnnstab.errors import let_through
from gnnstab.probe.attaching.norms import told_the_graphs
from gnnstab.probe.places import _order as order
from gnnstab.probe.places._padding import Filled, filled_rows, padding_mask, says_closed
from gnnstab.probe.places._passes import ROUNDING, Passes, Row, moved
from gnnstab.probe.replaying.evaluating import by_running_statistics
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records.vocabulary import PLACE_FILLED_DIFFERENCE


class Company(NamedTuple):
    """One of several graphs, and how to take it out of a tensor."""

    alone: Callable[[Tensor, str], Tensor | None]
    """(tensor, name) → what belongs to this graph; the tensor itself where it belongs to none, None where nobody can say."""

    changed: Callable[[Tensor], Tensor]
    """The tensor with other numbers in the rows of all other graphs."""

    turned: Callable[[Tensor, str], Tensor | None]
    """(tensor, name) → the same graphs in the reverse order; None where nobody can say."""

    graph: int
    size: int
    most: int
    """Nodes of the largest graph."""

    mask: str = ""
    """Tensor of the batch that says which rows are padding; empty where the graphs are told by ``batch``."""

    varies: bool = False
    """True where the padding that the batch brings along holds more than one constant row."""


def rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    named: Mapping[str, Tensor],
    graphs: Tensor | None,
    rng: Any,
) -> Iterator[Row]:
    """The change of the output of the smallest graph, and of a second pass in evaluation mode; ``model`` is a copy and left so.

    Nothing for a single graph, for numbers below float32, and where the forward does not take one graph alone.
    """
    if not by_running_statistics(model):
        return
    run = Passes(model, rng)
    one, two = run(args, kwargs), run(args, kwargs, shifted=True)
    if not one or any(t.dtype not in (torch.float32, torch.float64) for t in one):
        return
    again = moved(one, two)
    if again > ROUNDING:
        yield "place.pass_difference", "output", again, {}
        return
    filled = filled_rows(named)
    if filled is not None and math.isfinite(change := _tried(lambda: _without(run, one, args, kwargs, filled))):
        real = f"~{filled.mask}" if says_closed(filled.mask) else filled.mask
        rows = int((~filled.real).sum())
        yield PLACE_FILLED_DIFFERENCE, "output", change, {"mask": filled.mask, "real": real, "rows": rows}
    company = _of_vector(graphs, named) or _of_mask(named)
    if company is None:
        return
    detail: dict[str, Any] = {
        "graph": company.graph,
        "size": company.size,
        "most": company.most,
        "mask": company.mask,
        "varies": company.varies,
    }
    change = _tried(lambda: _alone(run, one, args, kwargs, named, company))
    if not change <= ROUNDING:
        heard = _tried(lambda: _heard(run, args, kwargs, company))
        if math.isnan(
            change
        ):  # One size of graphs may be all that the model takes; what it hears shows without cutting one out.
            change, detail["kept"] = heard, True
        detail["content"] = 0.0 if math.isnan(heard) else heard
        if heard > ROUNDING and graphs is not None and not company.mask:
            with told_the_graphs(model, graphs):
                apart = _tried(lambda: _heard(run, args, kwargs, company))
            if not math.isnan(apart):
                detail["content_with_norms_apart"] = apart
    if math.isfinite(change):
        yield "place.alone_difference", "output", change, detail
    # Where graphs hear each other their order may well count.
    if not detail.get("content", 0.0) > ROUNDING:
        yield from order.rows(run, one, args, kwargs, named, company)


def heard(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    named: Mapping[str, Tensor],
    blocks: Tensor,
    rng: Any,
) -> Iterator[Row]:
    """The same for blocks of nodes that look like graphs: only where one hears others."""
    for signal, name, value, detail in rows(model, args, kwargs, named, blocks, rng):
        if detail.get("content", 0.0) > ROUNDING:
            yield signal, name, value, {**detail, "untold": True}


def _tried(measured: Callable[[], float]) -> float:
    """What a forward on other arguments shows; NaN where a stranger's forward does not take them, which it says in any way."""
    try:
        return measured()
    except Exception as error:
        let_through(error)
        return math.nan


def _alone(
    run: Passes,
    one: list[Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    named: Mapping[str, Tensor],
    company: Company,
) -> float:
    """How far the output of one graph moves when it runs alone."""
    apart = run(*_taken(args, kwargs, named, company))
    own = [company.alone(t, "") for t in one]
    pairs = [
        (a, b)
        for a, b, whole in zip(own, apart, one, strict=True)
        if a is not None and a is not whole and a.shape == b.shape
    ]
    return moved([a for a, _ in pairs], [b for _, b in pairs])


def _without(run: Passes, one: list[Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], filled: Filled) -> float:
    """How far the output of all other rows, or of the graphs, moves when the rows that fill these up are taken out."""
    apart = run(*mapped((args, dict(kwargs)), filled.taken_out))
    return moved(
        [t[filled.real] if len(t) == len(filled.real) else t for t in one if t.dim()], [t for t in apart if t.dim()]
    )


def _heard(run: Passes, args: tuple[Any, ...], kwargs: Mapping[str, Any], company: Company) -> float:
    """How far the output of one graph moves with the numbers of all others."""
    one, others = run(args, kwargs), run(*mapped((args, dict(kwargs)), company.changed))
    pairs = [(company.alone(a, ""), company.alone(b, ""), a) for a, b in zip(one, others, strict=True)]
    own = [(a, b) for a, b, whole in pairs if a is not None and a is not whole and b is not None]
    return moved([a for a, _ in own], [b for _, b in own])


def _taken(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], named: Mapping[str, Tensor], company: Company
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a forward of the graph alone."""
    called = {id(tensor): name.rpartition(".")[2] for name, tensor in named.items()}

    def part(tensor: Tensor) -> Tensor:
        found = company.alone(tensor, called.get(id(tensor), ""))
        if found is None:
            raise ValueError("a tensor of which nobody can say what belongs to the graph")
        return found

    def own(value: Any) -> Any:
        if isinstance(value, Batch) and getattr(value, "_slice_dict", None):
            return Batch.from_data_list([value.get_example(company.graph)])
        return mapped(value, part)

    return tuple(map(own, args)), {key: own(value) for key, value in kwargs.items()}


def _of_vector(graphs: Tensor | None, named: Mapping[str, Tensor]) -> Company | None:
    """The smallest graph of a batch that a vector (nodes,) describes, whose edges lead nowhere else."""
    if graphs is None:
        return None
    edges = next(
        (t for n, t in named.items() if n.rpartition(".")[2] == "edge_index" and t.dim() == 2 and len(t) == 2), None
    )
    sizes = torch.bincount(graphs)
    nodes, count, lines = len(graphs), len(sizes), -1 if edges is None else edges.shape[1]
    if (
        count < 2
        or count in (nodes, lines)
        or (edges is not None and bool((graphs[edges[0]] != graphs[edges[1]]).any()))
    ):
        return None
    graph = _last_smallest(torch.where(sizes > 1, sizes, sizes.max() + 1))
    own = graphs == graph
    inner = None if edges is None else own[edges[0]]
    place = own.cumsum(0) - 1
    # Graphs the other way round, the nodes of each as they were; and where each node has gone.
    order = torch.sort(-graphs, stable=True).indices
    gone = torch.argsort(order)

    def turned(tensor: Tensor, name: str) -> Tensor | None:
        if tensor.layout != torch.strided:
            return None
        if tuple(tensor.shape) == (2, lines) and not tensor.is_floating_point():
            return gone[tensor]
        tensor = gone[tensor] if _of_nodes(tensor, graphs) else tensor
        if tensor.dim() and len(tensor) == nodes and not (nodes == lines and "edge" in name):
            return count - 1 - tensor[order] if torch.equal(tensor, graphs) else tensor[order]
        if name == "ptr":
            return torch.cat([tensor[:1], sizes.flip(0).cumsum(0).to(tensor.dtype)])
        return tensor.flip(0) if tensor.dim() and len(tensor) == count else tensor

    def alone(tensor: Tensor, name: str) -> Tensor | None:
        if tensor.layout != torch.strided:
            return None
        if inner is not None and tuple(tensor.shape) == (2, lines) and not tensor.is_floating_point():
            return place[tensor[:, inner]]
        tensor = place[tensor] if _of_nodes(tensor, graphs) else tensor
        if tensor.dim() and len(tensor) == nodes and not (nodes == lines and "edge" in name):
            # The vector itself counts from 0.
            return torch.zeros_like(tensor[own]) if torch.equal(tensor, graphs) else tensor[own]
        if tensor.dim() and len(tensor) == lines and inner is not None:
            return tensor[inner]
        if tensor.dim() and len(tensor) == count:
            return tensor[graph : graph + 1]
        return tensor.new_tensor([0, int(sizes[graph])]) if name == "ptr" else tensor

    def changed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.dim() or len(tensor) != nodes:
            return tensor
        return torch.where(own.view(-1, *(1,) * (tensor.dim() - 1)), tensor, tensor.flip(-1) * 1.5 + 0.5)

    return Company(alone, changed, turned, graph, int(sizes[graph]), int(sizes.max()))


def _of_nodes(tensor: Tensor, graphs: Tensor) -> bool:
    """True for numbers of nodes in the whole batch: those of each graph, or of each of its nodes, lie among its own."""
    if tensor.dtype != torch.long or tensor.dim() != 1 or not tensor.numel():
        return False
    own = graphs if len(tensor) == len(graphs) else torch.arange(len(tensor), device=tensor.device)
    inside = int(tensor.min()) >= 0 and int(tensor.max()) < len(graphs)
    return inside and len(own) in (len(graphs), int(graphs.max()) + 1) and torch.equal(graphs[tensor], own)


def _last_smallest(sizes: Tensor) -> int:
    """(graphs,) sizes → the last of the smallest: the first one stands alone where it stood in its batch."""
    return len(sizes) - 1 - int(sizes.flip(0).argmin())


def _of_mask(named: Mapping[str, Tensor]) -> Company | None:
    """The smallest set of a padded batch: its real rows alone, without padding."""
    found = padding_mask(named)
    if found is None:
        return None
    name, real = found
    sets, width = real.shape
    sizes = real.sum(1)
    graph = _last_smallest(sizes)
    own = real[graph].nonzero().flatten()

    def alone(tensor: Tensor, name: str) -> Tensor | None:
        if tensor.layout != torch.strided or tensor.dim() == 0 or len(tensor) != sets:
            return tensor
        if tensor.dim() == 1 or tensor.shape[1] != width:
            return tensor[graph : graph + 1]
        part = tensor[graph : graph + 1, own]
        # A matrix of pairs of rows has two dimensions to cut.
        return part[:, :, own] if tensor.dim() == 3 and tensor.shape[2] == width else part

    def changed(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dim() < 2 or len(tensor) != sets:
            return tensor
        other = torch.arange(sets, device=tensor.device) != graph
        return torch.where(other.view(-1, *(1,) * (tensor.dim() - 1)), tensor.flip(-1) * 1.5 + 0.5, tensor)

    def turned(tensor: Tensor, name: str) -> Tensor | None:
        return tensor.flip(0) if tensor.dim() and len(tensor) == sets else tensor

    padded = [t[~real] for t in named.values() if t.is_floating_point() and t.dim() > 2 and t.shape[:2] == real.shape]
    return Company(
        alone, changed, turned, graph, len(own), int(sizes.max()), name, any(bool((t != t[:1]).any()) for t in padded)
    )
