"""Whether a path leads around a layer, read from the autograd graph of one training forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

Endpoint: TypeAlias = "Tensor | Node | None"
"""A tensor that still hangs in its autograd graph, or its node as `node_of` gave it; None when it has no history."""

BUDGET = 20_000
"""Autograd nodes visited per layer before the question is left open."""


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
    (raw data as input, a forward without gradients), no later entry, or a graph of more than 20 000 nodes. A layer that
    is called several times is True only if every call is.
    """
    steps = [(name, _node(entry), _node(leaving)) for name, entry, leaving in layer_trace]
    answers: dict[str, bool | None] = {}
    for position, (name, entry, leaving) in enumerate(steps):
        if name:
            later = steps[position + 1 :]
            answer = _around(entry, leaving, later) if entry and leaving and later else None
            answers[name] = _both(answers.get(name, True), answer)
    return answers


def _node(endpoint: Endpoint) -> Node | None:
    return node_of(endpoint) if isinstance(endpoint, Tensor) else endpoint


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _around(entry: Node, leaving: Node, later: Sequence[tuple[str, Node | None, Node | None]]) -> bool | None:
    targets = _behind([entry], {}, None)
    if targets is None:
        return None
    targets = {node for node in targets if node is entry or not _is_parameter(node)}
    shortcuts = {out: [inside] for _, inside, out in later if out is not None and inside is not None}
    starts = [inside for _, inside, _ in later if inside is not None]
    found = _behind(starts, {**shortcuts, leaving: []}, targets)
    return None if found is None else not targets.isdisjoint(found)


def _behind(
    starts: Iterable[Node], shortcuts: Mapping[Node, Sequence[Node]], until: set[Node] | None
) -> set[Node] | None:
    """All nodes at and behind ``starts``; ``shortcuts`` replaces what lies behind a node; ends early inside ``until``.

    None when the budget is spent.
    """
    seen: set[Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if until is not None and node in until:
            return seen
        if len(seen) > BUDGET:
            return None
        behind = shortcuts.get(node)
        waiting += [n for n, _ in node.next_functions if n is not None] if behind is None else behind
    return seen


def _is_parameter(node: Node) -> bool:
    return node.name().endswith("AccumulateGrad")
