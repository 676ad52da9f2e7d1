"""Whether a path leads around a layer, read from the autograd graph of one training forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

Endpoint: TypeAlias = "Tensor | Node | None"
"""A tensor that still hangs in its autograd graph, or its node as `node_of` gave it; None when it has no history."""

BUDGET = 200_000
"""Autograd nodes of one forward beyond which the question is left open."""


def node_of(tensor: Tensor) -> Node | None:
    """The autograd node that made ``tensor``; None for a tensor without history.

    Take it when the layer returns: an in-place operation afterwards (``y.relu_()``, ``y += x``) gives the tensor
    another node, and with it another past.
    """
    return get_gradient_edge(tensor).node if tensor.requires_grad else None


def identity_paths(layer_trace: Sequence[tuple[str, Endpoint, Endpoint]]) -> dict[str, bool | None]:
    """For every layer: does a path lead around it?

    ``layer_trace`` holds (layer, its node input, its output) in order of execution, from one forward with gradients; a final
    entry named ``""`` may hold the model's output as its input. Outputs should be nodes (`node_of`) taken when the
    layer returned.

    True when the input of any later entry, followed backwards, reaches the layer's input, or something that this input
    was made from, without passing through the layer's output: a residual after the layer, a pre-norm residual, a
    residual over several layers, a concatenation of all layers at the end. Other recorded layers on the way are passed
    from output straight to input, so that what they share besides the nodes (an edge encoder) is no way around.
    Parameters are no common ancestors either. False when there is none. None when it cannot be decided: no history
    (raw data as input, a forward without gradients), no later entry, or a graph of more than 200 000 nodes. A layer that
    is called several times is True only if every call is.
    """
    steps = [(name, _node(entry), _node(leaving)) for name, entry, leaving in layer_trace]
    around = _around(steps)
    answers: dict[str, bool | None] = {}
    for position, (name, entry, leaving) in enumerate(steps):
        if name:
            known = around is not None and entry and leaving and position + 1 < len(steps)
            answer = bool(around >> position & 1) if known and around is not None else None
            answers[name] = _both(answers.get(name, True), answer)
    return answers


def _node(endpoint: Endpoint) -> Node | None:
    return node_of(endpoint) if isinstance(endpoint, Tensor) else endpoint


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _around(steps: Sequence[tuple[str, Node | None, Node | None]]) -> int | None:
    """A bit for every step around which a path leads; None when the budget is spent.

    Every node bears two sets of steps, as bits: those whose input was made from it, and those around which one gets to it
    from a later input. One pass over the graph, from the outputs to the inputs, hands both on for all steps at once.
    """
    order = _ordered([entry for _, entry, _ in steps if entry is not None])
    if order is None:
        return None
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
            reached[entry] = reached.get(entry, 0) | (1 << position) - 1
    found = 0
    for node in order:
        makes, ways = above.get(node, 0), reached.get(node, 0)
        found |= (entries.get(node, 0) if _is_parameter(node) else makes) & ways
        for position, entry in inside.get(node, ()):
            # Around a layer no way leads through its output; one around an earlier layer passes it from output to input.
            if entry is not None:
                reached[entry] = reached.get(entry, 0) | ways & (1 << position) - 1
                ways &= ~((1 << position + 1) - 1)
            else:
                ways &= ~(1 << position)
        for behind, _ in node.next_functions:
            if behind is not None:
                above[behind] = above.get(behind, 0) | makes
                reached[behind] = reached.get(behind, 0) | ways
    return found


def _ordered(starts: Sequence[Node]) -> list[Node] | None:
    """All nodes at and behind ``starts``, each in front of what it was made from; None when the budget is spent."""
    seen: set[Node] = set()
    order: list[Node] = []
    waiting = [(node, False) for node in starts]
    while waiting:
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            if len(seen) > BUDGET:
                return None
            waiting.append((node, True))
            waiting += [(behind, False) for behind, _ in node.next_functions if behind is not None]
    return order[::-1]


def _is_parameter(node: Node) -> bool:
    return node.name().endswith("AccumulateGrad")
