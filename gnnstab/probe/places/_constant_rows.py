"""Nodes without incoming edges whose answer is one constant: every number of the batch is changed on a copy, and it stays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.errors import let_through
from gnnstab.probe.places._passes import Passes, Row
from gnnstab.probe.replaying.evaluating import by_running_statistics
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records.vocabulary import PLACE_CONSTANT_ROWS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

FEW = 0.1
"""Edges of a relation per node of either end below which it is said how few they are."""

LATER = 2
"""Graphs behind the first rows that have no edge, from which on it is asked whether edges were not shifted."""

TWICE = 0.05
"""Share of the edges that stand there already, above which those of several graphs seem to lie on one another."""

MOST = 0.5
"""Share of the reached nodes with the same constant row above which it is not for want of edges that others have it."""


def rows(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    seen: ForwardView,
    rng: Any,
    came_back: Tensor | None = None,
) -> Iterator[Row]:
    """Share of the nodes that no edge leads to and that all get the same row of the output, whatever the batch holds.

    ``model`` is a copy and left so. Nothing where every node is reached, or where the nodes bring no numbers of their own that could move
    the output. Of an output that has a row for each pair of nodes those rows count that move once every node has a loop (``loops``). ``read``: share of all nodes that are so and at whose output the
    backward that was seen has a gradient; that of the run's own loss where it ``came_back``, and then ``by_loss``. ``deaf``: share of the
    rows with a gradient that are about such nodes and stay when the numbers of everything else change; ``steeper``: RMS of the gradient there, over that at the others. ``kinds``: those of which no node is reached.
    ``sparse``: relations with an edge for less than one node in ten of either end, in words.
    ``unshifted``: as `_unshifted`. Nothing, too, where most nodes that are reached give that very row, as behind ReLUs that are all closed.
    """
    named = seen.batch
    alone, kinds = {}, set[str]()
    for name, tensor in named.items():
        kind = _known_kind(name, named)
        found = _unreached(named, kind, len(tensor)) if tensor.dim() > 1 and _differ(tensor) else None
        if found is not None and len(found) in seen.nodes and bool(found.any()):
            alone[len(found)] = found
            kinds |= {kind} if kind and bool(found.all()) else set()
    if not alone or not by_running_statistics(model):
        return
    run = Passes(model, rng)
    try:
        before, after = run(args, kwargs), run(*mapped((args, dict(kwargs)), _changed))
        per_node = any(t.dim() and len(t) in alone for t in before)
        looped = [] if per_node else _with_loops(run, args, kwargs, named, alone)
        apart = run(*mapped((args, dict(kwargs)), lambda tensor: _changed_around(tensor, alone))) if per_node else []
    except Exception as error:  # A stranger's forward may refuse other numbers, and says so in any way.
        let_through(error)
        return
    for number, (one, other, output) in enumerate(zip(before, after, seen.outputs, strict=False)):
        if one.dim() and one.shape == other.shape and (len(one) in alone or number < len(looped)):
            one, other = one.flatten(1) if one.dim() > 1 else one[:, None], other.reshape(len(other), -1)
            stays = (one == other).all(1)
            still = (alone[len(one)] if per_node else looped[number]) & stays
            if bool(still.any()):
                # Rows that stay but differ are told apart by what was not changed, as by an embedding.
                values, which, count = torch.unique(one[still], dim=0, return_inverse=True, return_counts=True)
                still[still.clone()] = which == count.argmax()
                reached = ~alone[len(one)] if per_node else ~stays
                alike = stays & (one == values[count.argmax()]).all(1)
                if bool(reached.any()) and float(alike[reached].float().mean()) > MOST:
                    return  # Edges make no difference to that answer.
            by_loss = came_back is not None and came_back.shape == output.shape
            gradient = came_back if by_loss else output.grad
            asked = still if gradient is None else still & (gradient.reshape(len(still), -1) != 0).any(1)
            yield (
                PLACE_CONSTANT_ROWS,
                "output",
                _share(still),
                {"read": _share(asked)}
                | ({"by_loss": True} if by_loss else {})
                | _deaf(before, apart, seen.outputs, alone, came_back)
                | ({} if per_node else {"loops": True})
                | ({"kinds": sorted(kinds)} if kinds else {})
                | ({"sparse": sparse} if (sparse := _sparse(named)) else {})
                | ({"unshifted": joined} if (joined := _unshifted(named, seen.graphs)) else {}),
            )
            return


def _deaf(
    before: Sequence[Tensor],
    apart: Sequence[Tensor],
    outputs: Sequence[Tensor],
    alone: Mapping[int, Tensor],
    came_back: Tensor | None,
) -> dict[str, float]:
    """The share of all rows that the loss reads which nothing but their own node moves, and how much ``steeper`` the loss is at these; nothing where no backward tells."""
    asked = deaf = 0
    steep = rest = 0.0
    for one, other, output in zip(before, apart, outputs, strict=False):
        gradient = came_back if came_back is not None and came_back.shape == output.shape else output.grad
        if gradient is None or not one.dim() or one.shape != other.shape or gradient.shape != one.shape:
            continue
        read = (gradient.reshape(len(one), -1) != 0).any(1)
        asked += int(read.sum())
        squares = gradient.detach().double().square().reshape(len(one), -1).sum(1)
        rest += float(squares.sum())
        if len(one) in alone:
            still = read & alone[len(one)] & (one == other).reshape(len(one), -1).all(1)
            deaf, steep = deaf + int(still.sum()), steep + float(squares[still].sum())
    if not asked:
        return {}
    told = {"deaf": deaf / asked}
    if 0 < deaf < asked and rest > steep:
        told["steeper"] = math.sqrt(steep / deaf / ((rest - steep) / (asked - deaf)))
    return told


def _with_loops(
    run: Passes,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    named: Mapping[str, Tensor],
    alone: Mapping[int, Tensor],
) -> list[Tensor]:
    """For each output the rows that other numbers move once every node has a loop; nothing where an output keeps no shape."""
    nodes = next(iter(alone))
    loops = torch.arange(nodes).expand(2, -1)
    lists = [t for t in named.values() if t.dim() == 2 and len(t) == 2 and not t.is_floating_point() and t.numel()]
    if len(alone) > 1 or len(lists) != 1:
        return []

    def added(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, loops.to(tensor)], 1) if tensor is lists[0] else tensor

    with_loops = mapped((args, dict(kwargs)), added)
    before, after = run(*with_loops), run(*mapped(with_loops, _changed))
    pairs = list(zip(before, after, strict=True))
    if any(one.dim() == 0 or one.shape != other.shape for one, other in pairs):
        return []
    return [(one != other).reshape(len(one), -1).any(1) for one, other in pairs]


def _share(rows: Tensor) -> float:
    return float(rows.double().mean())


def _unreached(named: Mapping[str, Tensor], kind: str, count: int) -> Tensor | None:
    """(count,) mask of the nodes of a kind that no edge list leads to; None without one."""
    lists = [
        t for name, t in named.items()
        if t.dim() == 2 and len(t) == 2 and t.shape[1] and not (t.is_floating_point() or t.dtype == torch.bool)
        and _leads_to(name, kind)
    ]  # fmt: skip
    related = [t for name, t in named.items() if "__" in name and t.dim() == 2 and len(t) == 2 and t.numel()]
    if not lists and kind and related:
        return torch.ones(count, dtype=torch.bool, device=related[0].device)  # No relation leads to this kind.
    if not lists or any(int(t.min()) < 0 or int(t[1].max()) >= count for t in lists):
        return None
    alone = torch.ones(count, dtype=torch.bool, device=lists[0].device)
    for edges in lists:
        alone[edges[1]] = False
    return alone


def _sparse(named: Mapping[str, Tensor]) -> list[str]:
    nodes = {_kind(name): len(t) for name, t in named.items() if t.dim() > 1 and t.is_floating_point()}
    found = []
    for name, tensor in named.items():
        relation = next((part for part in name.split(".") if "__" in part.strip("_")), "")
        kinds = (relation.split("__")[0], relation.split("__")[-1])
        ends = [nodes[kind] for kind in kinds if kind in nodes and (kind or name == "edge_index")]
        if len(ends) == 2 and tensor.dim() == 2 and len(tensor) == 2 and tensor.shape[1] < FEW * min(ends):
            between = f"{ends[0]} and {ends[1]}" if relation else f"{ends[0]}"
            found.append(f"{relation or name} ({tensor.shape[1]} edges for {between} nodes)")
    return found


def _unshifted(named: Mapping[str, Tensor], graphs: Tensor | None) -> dict[str, Any]:
    """Of a batch (nodes,) of several graphs whose edges all lie within as many rows as one graph has, and stand there several times.

    So do edges whose numbers were not shifted when the graphs were joined. Empty for any other batch.
    """
    lists = [t for n, t in named.items() if n.rpartition(".")[2] == "edge_index" and t.dim() == 2 and len(t) == 2]
    if graphs is None or len(lists) != 1 or not lists[0].numel() or bool((graphs.diff() < 0).any()):
        return {}
    most, edges = int(torch.bincount(graphs).max()), lists[0]
    bare = int(torch.unique(graphs[most:]).numel())
    if bare < LATER or int(edges.max()) >= most:
        return {}
    repeated = 1 - torch.unique(edges, dim=1).shape[1] / edges.shape[1]
    return (
        {"within": most, "graphs": int(graphs.max()) + 1, "bare": bare, "repeated": repeated}
        if repeated > TWICE
        else {}
    )


def _kind(name: str) -> str:
    """``paper`` of ``paper.x`` and of ``x_dict.paper``; empty for ``x``."""
    return next((part for part in name.split(".") if part not in ("x", "x_dict")), "")


def _known_kind(name: str, named: Mapping[str, Tensor]) -> str:
    """`_kind`; of an argument of its own beside relations (``drug_x``) the kind of theirs that its name holds, empty where none is."""
    relations = [part.split("__") for one in named for part in one.split(".") if "__" in part.strip("_")]
    if "." in name or not relations:
        return _kind(name)
    ends = {end for relation in relations for end in (relation[0], relation[-1])}
    return max((end for end in ends if end and f"_{end}_" in f"_{name}_"), key=len, default="")


def _leads_to(name: str, kind: str) -> bool:
    relation = next((part for part in name.split(".") if "__" in part.strip("_")), "")
    return relation.endswith(f"__{kind}") if relation else True


def _differ(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and len(tensor) > 0 and bool((tensor != tensor[:1]).any())


def _changed_around(tensor: Tensor, alone: Mapping[int, Tensor]) -> Tensor:
    """Other numbers everywhere but at the nodes that no edge leads to."""
    changed = _changed(tensor)
    if changed is tensor or len(tensor) not in alone:
        return changed
    return torch.where(alone[len(tensor)].view(-1, *[1] * (tensor.dim() - 1)), tensor, changed)


def _changed(tensor: Tensor) -> Tensor:
    return tensor.flip(-1) * 1.5 + 0.5 if tensor.is_floating_point() and tensor.dim() else tensor
