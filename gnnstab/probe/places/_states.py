"""Activations and node states: dead, cut off, saturated, alike; normalisations that stand behind a residual sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import Aggregation

from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places import _operations as operations
from gnnstab.records.vocabulary import PLACE_CLAMPED_SHARE, PLACE_DEAD_SHARE

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_ALIKE = 0.01
"""Difference below which a place is listed."""

_THROUGH = ("DropoutBackward", "MulBackward", "NativeDropoutBackward", "ViewBackward", "ReshapeAliasBackward")
"""Operations that leave a residual sum one."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Numbers of everything between the batch and the output."""
    yield from _operations(seen)
    yield from _differences(seen)
    yield from _post_norms(seen)


def _operations(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """The worst of each kind for each module behind which an operation stands."""
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    order = {call.name: i for i, call in enumerate(seen.calls.all)}
    # Without an edge a sum over neighbours is 0, and a ReLU behind it closed by no fault of its own.
    empty = {
        call.name
        for call in seen.calls.all
        if isinstance(call.module, Aggregation) and not any(bool(t.any()) for t in call.leaving)
    }
    for node in operations.walk(seen.outputs):
        found = operations.measure(node)
        if found is None:
            continue
        signal, value = found
        above = next((one for one, _ in node.next_functions if one is not None), None)
        place = operations.made_by(above, seen.calls.maker) or operations.made_by(node, seen.calls.maker) or "output"
        if signal == PLACE_DEAD_SHARE and place in empty:
            continue
        worst[signal, place] = max(worst.get((signal, place), (-1.0, "")), (value, type(node).__name__))
    at_the_end = {t.grad_fn for t in seen.outputs}
    given = {*seen.batch, *(name for name, _ in seen.model.named_parameters())}
    last = {operations.made_by(node, seen.calls.maker) for node in at_the_end if node is not None}
    for (signal, place), (value, kind) in sorted(worst.items(), key=lambda item: order.get(item[0][1], 1 << 30)):
        operation = kind.partition("Backward")[0].lower()
        if place in given and signal != PLACE_CLAMPED_SHARE:
            continue  # No module stands in front: a ReLU or tanh of features or of a bare parameter is no activation.
        detail = {"operation": operation, "output": place in last or place == "output", "input": place in seen.batch}
        yield signal, place, value, detail


def _differences(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """How much the nodes of a graph differ at the input, behind every module, and in the output."""
    if len(seen.nodes) != 1:
        return
    (count,) = seen.nodes
    if count < 3:
        return
    own = [t for t in seen.outputs if _of_nodes(t, count)]
    # An answer for each graph needs differences between the graphs as well.
    graphs, reached = seen.graphs if own else None, _reached(seen, count)

    def difference(tensor: Tensor) -> float:
        rows = tensor if reached is None else tensor[reached]
        return numbers.difference(rows, graphs if graphs is None or reached is None else graphs[reached])

    found: list[tuple[str, float]] = []
    for name, tensor in seen.batch.items():
        if name.rsplit(".", 1)[-1] == "x" and _of_nodes(tensor, count) and tensor.is_floating_point():
            found.append((name, difference(tensor)))
    for call in seen.calls.all:
        if next(call.module.parameters(), None) is not None:
            found += [(call.name, difference(t)) for t in call.leaving if _of_nodes(t, count)]
    outputs = [difference(t) for t in own] or [
        numbers.difference(t, None) for t in seen.outputs if t.dim() and len(t) > 1
    ]
    found += [("output", value) for value in outputs]
    alike = [name for name, value in found if value < _ALIKE]
    for position, (name, value) in enumerate(found):
        # All that is needed to say where the nodes became alike; healthy ones are told at both ends alone.
        if not math.isnan(value) and (position == 0 or name in ("output", *alike)):
            yield "place.node_difference", name, value, {"position": position, "per_node": bool(own)}


def _edges(seen: ForwardView) -> Tensor | None:
    """(2, edges) of the one edge list of the batch."""
    found = [t for name, t in seen.batch.items() if name.rsplit(".", 1)[-1] == "edge_index"]
    return found[0] if len(found) == 1 and found[0].dim() == 2 and len(found[0]) == 2 else None


def _reached(seen: ForwardView, count: int) -> Tensor | None:
    """(count,) mask of the nodes that edges lead to, and to all that they hear of; None for too few.

    What attention gives a node without incoming edges is no average, and tells it and those behind it from all others.
    """
    edges = _edges(seen)
    if edges is None or not edges.numel() or int(edges.max()) >= count:
        return None
    source, target = edges
    reached, found = torch.bincount(target, minlength=count) > 0, None
    for _ in range(sum(isinstance(call.module, MessagePassing) for call in seen.calls.all)):
        if int(reached.sum()) < 3:
            break
        found = reached
        reached = reached & (torch.bincount(target[~reached[source]], minlength=count) == 0)
    return found


def _of_nodes(tensor: Tensor, count: int) -> bool:
    return 1 <= tensor.dim() <= 2 and len(tensor) == count


def _post_norms(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Normalisations that a residual sum ends in: nothing leads around them.

    In front of a layer the normalisation is beside the identity path, since the sum goes on to the next one.
    """
    users = Counter(
        above for node in operations.walk(seen.outputs) for above, _ in node.next_functions if above is not None
    )
    names = [
        call.name
        for call in seen.calls.all
        if call.normalises and call.entering and _ends_a_residual(call.entering[0].grad_fn, seen, users)
    ]
    if names:
        yield "place.post_norms", names[0], float(len(names)), {"names": names[:40]}


def _ends_a_residual(node: Any, seen: ForwardView, users: Mapping[Any, int]) -> bool:
    """A sum that nothing else uses, one of whose operands lies before the other, with a module in between."""
    while node is not None and type(node).__name__.startswith(_THROUGH):
        node = next((above for above, _ in node.next_functions if above is not None), None)
    if node is None or not type(node).__name__.startswith("AddBackward") or users[node] > 1:
        return False
    operands = [above for above, _ in node.next_functions if above is not None]
    if len(operands) != 2:
        return False
    one, other = operands
    before = one if operations.reaches(other, one) else other if operations.reaches(one, other) else None
    return before is not None and bool(operations.made_by(other if before is one else one, seen.calls.maker))
