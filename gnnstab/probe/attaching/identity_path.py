"""Which layers a path leads around, and which stand beside each other: read from the autograd graph of one training forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from gnnstab.torch_private import without_torch_dispatch

Endpoint: TypeAlias = "Tensor | Node | None"
"""A tensor that still hangs in its autograd graph, or its node as `node_of` gave it; None when it has no history."""

BUDGET = 200_000
"""Autograd nodes of one forward beyond which the question is left open."""

MOST_BESIDE = 10_000
"""Names of layers beside others beyond which none is told: towers of hundreds of layers each."""


class Mark(NamedTuple):
    """One call of one layer."""

    name: str
    entry: Endpoint
    """Its node input."""

    leaving: Endpoint
    """Its output; as a node (`node_of`), taken when the layer returned."""

    more: tuple[Endpoint, ...] = ()
    """Whatever else it was given."""


class Ways(NamedTuple):
    """How the layers of one forward stand to each other."""

    around: dict[str, bool | None]
    """Layer → whether a path leads around it."""

    beside: dict[str, tuple[str, ...]]
    """Layer → the layers that were called before it and whose output does not reach it; without those that are not known."""


def node_of(tensor: Tensor) -> Node | None:
    """The autograd node that made ``tensor``; None for a tensor without history.

    Take it when the layer returns: an in-place operation afterwards (``y.relu_()``, ``y += x``) gives the tensor
    another node, and with it another past.
    """
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def leads_to(node: Any) -> list[Node]:
    """The nodes that a gradient goes on to; not through a product with the number 0, as of a residual that is switched off by its weight."""
    onward = node.next_functions
    behind = [other for other, _ in onward if other is not None]
    # A product with one operand that has a history; operations of three have more entries.
    if onward[1:] and not onward[2:] and behind and not behind[1:] and node.name().startswith("MulBackward"):
        kept = getattr(node, "_raw_saved_other", None)
        if onward[0][0] is None:
            kept = getattr(node, "_raw_saved_self", None)
        with without_torch_dispatch():
            # Nothing is unpacked, since that may compute a checkpointed part anew; a number is always kept as it is.
            factor = getattr(kept, "data", None)
            if isinstance(factor, Tensor) and not factor.dim() and factor.device.type == "cpu" and not factor:
                return []
    return behind


def ways(layer_trace: Sequence[tuple[str, Endpoint, Endpoint] | Mark]) -> Ways:
    """For every layer: does a path lead around it, and what stands beside it?

    ``layer_trace`` holds the calls in order of execution, from one forward with gradients; a final entry named ``""`` may hold
    the model's output as its input.

    ``around``: true when the input of any later entry, followed backwards, reaches the layer's input, or something that this input
    was made from, without passing through the layer's output: a residual after the layer, a pre-norm residual, a
    residual over several layers, a concatenation of all layers at the end. Other recorded layers on the way are passed
    from output straight to input, so that what they share besides the nodes (an edge encoder) is no way around; not those
    beside the layer, whose sum with it, as of several relations, is no residual.
    Parameters are no common ancestors either. False when there is none. None when it cannot be decided: no history
    (raw data as input, a forward without gradients), no later entry, or a graph of more than 200 000 nodes. A layer that
    is called several times is True only if every call is.
    """
    marks = [Mark(*mark) for mark in layer_trace]
    steps = [(mark.name, _node(mark.entry), _node(mark.leaving)) for mark in marks]
    more = [[node for one in mark.more if (node := _node(one)) is not None] for mark in marks]
    graph = _walked(steps, more)
    around = None if graph is None else graph[0]
    if graph is not None and _branches(steps, graph[1]):
        again = _walked(steps, more, _in_line(steps, graph[1]))
        around = None if again is None else again[0]
    answers: dict[str, bool | None] = {}
    for position, (name, entry, leaving) in enumerate(steps):
        if name:
            known = around is not None and entry and leaving and position + 1 < len(steps)
            answer = bool(around >> position & 1) if known and around is not None else None
            answers[name] = _both(answers.get(name, True), answer)
    return Ways(answers, {} if graph is None else _beside(steps, more, graph[1]))


def _branches(steps: Sequence[tuple[str, Node | None, Node | None]], feeds: dict[int, int]) -> bool:
    """True where the output of some step does not reach all that come later."""
    return any(
        leaving is not None and (feeds.get(position, 0) | (1 << position + 1) - 1) + 1 != 1 << len(steps)
        for position, (_, _, leaving) in enumerate(steps[:-1])
    )


def _in_line(steps: Sequence[tuple[str, Node | None, Node | None]], feeds: dict[int, int]) -> list[int]:
    """For each step those that its output reaches and those whose output reaches it, as bits; what has no history may be any of them."""
    found = [0] * len(steps)
    for position, (_, _, leaving) in enumerate(steps):
        reaches = -1 if leaving is None else feeds.get(position, 0)
        found[position] |= reaches
        for later in range(position + 1, len(steps)):
            found[later] |= (reaches >> later & 1) << position
    return found


def _beside(
    steps: Sequence[tuple[str, Node | None, Node | None]], more: Sequence[Sequence[Node]], feeds: dict[int, int]
) -> dict[str, tuple[str, ...]]:
    """From the steps that the output of each step reaches."""
    first: dict[str, int] = {}
    calls: dict[str, int] = {}
    reaches: dict[str, int] = {}
    for position, (name, _, leaving) in enumerate(steps):
        if name:
            first.setdefault(name, position)
            calls[name] = calls.get(name, 0) | 1 << position
            # What has no history may have gone anywhere.
            reaches[name] = reaches.get(name, 0) | (-1 if leaving is None else feeds.get(position, 0))
    known = {name for position, (name, entry, _) in enumerate(steps) if entry is not None or more[position]}
    beside = {
        name: tuple(other for other in first if first[other] < first[name] and not reaches[other] & calls[name])
        for name in first
        if name in known
    }
    return beside if sum(map(len, beside.values())) <= MOST_BESIDE else {}


def _node(endpoint: Endpoint) -> Node | None:
    return node_of(endpoint) if isinstance(endpoint, Tensor) else endpoint


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _walked(
    steps: Sequence[tuple[str, Node | None, Node | None]],
    more: Sequence[Sequence[Node]],
    in_line: Sequence[int] | None = None,
) -> tuple[int, dict[int, int]] | None:
    """A bit for every step around which a path leads, and step → bits of the steps that its output reaches.

    None when the budget is spent. ``in_line`` holds for each step those that a way may lead around through it; all when omitted.

    Every node bears two sets of steps, as bits: those whose input was made from it, and those around which one gets to it
    from a later input. One pass over the graph, from the outputs to the inputs, hands both on for all steps at once. What else
    went into a step has bits of its own, higher ones: it is no place that a way around leads to.
    """
    count = len(steps)
    order = _ordered([*(entry for _, entry, _ in steps if entry is not None), *(node for one in more for node in one)])
    if order is None:
        return None
    line = in_line or [-1] * count
    inside: dict[Node, list[tuple[int, Node | None]]] = {}
    above: dict[Node, int] = {}
    reached: dict[Node, int] = {}
    entries: dict[Node, int] = {}
    for position, (_, entry, leaving) in enumerate(steps):
        if leaving is not None:
            inside.setdefault(leaving, []).append((position, entry))
        if entry is not None:
            entries[entry] = entries.get(entry, 0) | 1 << position
            above[entry] = above.get(entry, 0) | 1 << position
            reached[entry] = reached.get(entry, 0) | line[position] & (1 << position) - 1
        for node in more[position]:
            above[node] = above.get(node, 0) | 1 << position + count
    found = 0
    feeds: dict[int, int] = {}
    for node, onward in order.items():
        makes, ways = above.get(node, 0), reached.get(node, 0)
        found |= (entries.get(node, 0) if _is_parameter(node) else makes) & ways
        for position, entry in inside.get(node, ()):
            feeds[position] = makes | makes >> count
            # Around a layer no way leads through its output; one around an earlier layer passes it from output to input.
            if entry is not None:
                ways &= line[position]
                reached[entry] = reached.get(entry, 0) | ways & (1 << position) - 1
                ways &= ~((1 << position + 1) - 1)
            else:
                ways &= ~(1 << position)
        for behind in onward:
            above[behind] = above.get(behind, 0) | makes
            reached[behind] = reached.get(behind, 0) | ways
    return found, feeds


def _ordered(starts: Sequence[Node]) -> dict[Node, list[Node]] | None:
    """All nodes at and behind ``starts``, each in front of what it `leads_to`, with those; None when the budget is spent."""
    seen: dict[Node, list[Node]] = {}
    order: list[Node] = []
    waiting = [(node, False) for node in starts]
    while waiting:
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen[node] = leads_to(node)
            if len(seen) > BUDGET:
                return None
            waiting.append((node, True))
            waiting += [(behind, False) for behind in seen[node]]
    return {node: seen[node] for node in order[::-1]}


def _is_parameter(node: Node) -> bool:
    return node.name().endswith("AccumulateGrad")
