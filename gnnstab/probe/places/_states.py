"""Activations and node states: dead, cut off, saturated, alike; normalisations that stand behind a residual sum."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _masks as masks
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._padding import padding_mask
from gnnstab.records.vocabulary import PLACE_CLAMPED_SHARE, PLACE_DEAD_SHARE

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_ALIKE = 0.01
"""Difference below which a place is listed."""

_COLUMNS = 256
"""Columns of an input that are looked at one by one."""

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
    ranges: dict[str, float] = {}
    order = {call.name: i for i, call in enumerate(seen.calls.all)}
    empty = seen.calls.empty_sums()
    nodes = list(autograd.walk(seen.outputs))
    users: dict[Any, list[Any]] = {}
    for node in nodes:
        for above, _ in node.next_functions:
            users.setdefault(above, []).append(node)
    for node in nodes:
        found = autograd.measure(node)
        if found is None or autograd.flat_behind(node, users.get(node, ())):
            continue
        signal, value = found
        above = next((one for one, _ in node.next_functions if one is not None), None)
        place = autograd.made_by(above, seen.calls.maker) or autograd.made_by(node, seen.calls.maker) or "output"
        if signal == PLACE_DEAD_SHARE and place in empty:
            continue
        if signal == PLACE_CLAMPED_SHARE and place in seen.batch:
            reach = autograd.range_over_open(node)
            ranges[place] = max(ranges.get(place, 0.0), math.inf if math.isnan(reach) else reach)
        worst[signal, place] = max(worst.get((signal, place), (-1.0, "")), (value, type(node).__name__))
    at_the_end = {t.grad_fn for t in seen.outputs}
    given = {*seen.batch, *(name for name, _ in seen.model.named_parameters())}
    last = {autograd.made_by(node, seen.calls.maker) for node in at_the_end if node is not None}
    for (signal, place), (value, kind) in sorted(worst.items(), key=lambda item: order.get(item[0][1], 1 << 30)):
        operation = kind.partition("Backward")[0].lower()
        if place in given and signal != PLACE_CLAMPED_SHARE:
            continue  # No module stands in front: a ReLU or tanh of features or of a bare parameter is no activation.
        detail = {"operation": operation, "output": place in last or place == "output", "input": place in seen.batch}
        if signal == PLACE_CLAMPED_SHARE and place in ranges:
            detail["range"] = ranges[place]
        yield signal, place, value, detail


class _Members(NamedTuple):
    """The nodes that are compared, each with a row of its own in the tensors of a forward."""

    shape: tuple[int, ...]
    """(nodes,), or (sets, rows) of a padded batch."""

    kept: Tensor
    """Bool mask (nodes,) of those that count."""

    graphs: Tensor | None
    """(nodes,) graph of every node; None for one graph."""

    def rows(self, tensor: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Rows of those that count, and their graphs; None for a tensor without a row for each."""
        if tuple(tensor.shape[: len(self.shape)]) != self.shape or tensor.dim() > len(self.shape) + 1:
            return None
        kept, closed = self.kept, masks.filled(tensor)
        if closed is not None:
            # What a mask has written over says nothing of the node.
            kept = kept & ~closed.reshape(len(kept), -1).any(1)
        flat = tensor.reshape(len(kept), -1)[kept]
        return flat, None if self.graphs is None else self.graphs[kept]

    def difference(self, tensor: Tensor) -> float | None:
        """`numbers.difference` of the rows; None for a tensor without a row for each node."""
        found = self.rows(tensor)
        return None if found is None else numbers.difference(*found)

    def furthest_column(self, tensor: Tensor) -> float | None:
        """The largest difference that one column has by itself: a column that is much larger than the others hides theirs."""
        found = self.rows(tensor)
        if found is None:
            return None
        own = [numbers.difference(column[:, None], found[1]) for column in found[0].T[:_COLUMNS]]
        return max((value for value in own if not math.isnan(value)), default=None)


def _members(seen: ForwardView) -> _Members | None:
    """The nodes of the batch; of several kinds those that the output has rows for."""
    given = [t for n, t in seen.batch.items() if not is_target(n)]
    dense = next((t for t in given if t.dim() == 3 and t.is_floating_point()), None)
    if dense is None:  # Rows that are made of ids (sets, rows) alone.
        ids = {tuple(t.shape) for t in given if t.dim() == 2 and t.dtype == torch.int64}
        dense = next((t for t in seen.outputs if t.dim() == 3 and tuple(t.shape[:2]) in ids), None)
    if dense is not None and _edges(seen) is None:
        sets, width = dense.shape[:2]
        found = padding_mask(seen.batch)
        known = found is not None and found[1].shape == dense.shape[:2]
        kept = found[1].flatten() if found is not None and known else dense.new_ones(sets * width, dtype=torch.bool)
        graphs = torch.arange(sets, device=dense.device).repeat_interleave(width)
        return _Members((sets, width), kept, graphs) if width > 2 else None
    counts = [c for c in seen.nodes if len(seen.nodes) == 1 or any(t.dim() and len(t) == c for t in seen.outputs)]
    if len(counts) != 1 or counts[0] < 3:
        return None
    (count,) = counts
    reached = reached_by_edges(seen, count)
    device = next((t.device for t in seen.outputs), None)
    kept = torch.ones(count, dtype=torch.bool, device=device) if reached is None else reached
    return _Members((count,), kept, seen.graphs)


def _differences(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """How much the nodes of a graph differ at the input, behind every module, and in the output."""
    members = _members(seen)
    if members is None:
        return
    own = [value for t in seen.outputs if (value := members.difference(t)) is not None]
    if not own:
        # An answer for each graph needs differences between the graphs as well.
        members = members._replace(graphs=None)
    found = [
        (name, value)
        for name, t in seen.batch.items()
        if t.is_floating_point() and (name.rsplit(".", 1)[-1] == "x" or t.dim() == 3) and not is_target(name)
        if (value := members.difference(t)) is not None
    ]
    for call in seen.calls.all:
        if next(call.module.parameters(), None) is not None:
            found += [(call.name, value) for t in call.leaving if (value := members.difference(t)) is not None]
    outputs = own or [numbers.difference(t, None) for t in seen.outputs if t.dim() and len(t) > 1]
    found += [("output", value) for value in outputs]
    alike = [name for name, value in found if value < _ALIKE]
    first = found[0][0]
    apart = members.furthest_column(seen.batch[first]) if first in alike and first in seen.batch else None
    for position, (name, value) in enumerate(found):
        # All that is needed to say where the nodes became alike; healthy ones are told at both ends alone.
        if not math.isnan(value) and (position == 0 or name in ("output", *alike)):
            detail = {"position": position, "per_node": bool(own)}
            yield (
                "place.node_difference",
                name,
                value,
                detail if position or apart is None else {**detail, "apart": apart},
            )


def _edges(seen: ForwardView) -> Tensor | None:
    """(2, edges) of the one edge list of the batch."""
    found = [t for name, t in seen.batch.items() if name.rsplit(".", 1)[-1] == "edge_index"]
    return found[0] if len(found) == 1 and found[0].dim() == 2 and len(found[0]) == 2 else None


def reached_by_edges(seen: ForwardView, count: int) -> Tensor | None:
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


def _post_norms(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Normalisations that a residual sum ends in: nothing leads around them.

    In front of a layer the normalisation is beside the identity path, since the sum goes on to the next one.
    """
    users = Counter(
        above for node in autograd.walk(seen.outputs) for above, _ in node.next_functions if above is not None
    )
    names = [
        call.name
        for call in seen.calls.all
        if call.normalises and call.entering and _ends_a_residual(call.entering[0].grad_fn, seen, users)
    ]
    # A wrapper hands on what its norm does.
    names = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
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
    before = one if autograd.reaches(other, one) else other if autograd.reaches(one, other) else None
    return before is not None and bool(autograd.made_by(other if before is one else one, seen.calls.maker))
