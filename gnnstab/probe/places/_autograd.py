"""The operations of a forward, read from its autograd graph: what a ReLU, clamp or tanh left, wherever it was called."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from gnnstab.probe.places import _numbers as numbers

MOST_NODES = 20_000
"""Nodes of a graph that are looked at."""

SHAPES = (
    "ViewBackward",
    "UnsafeViewBackward",
    "ReshapeAliasBackward",
    "SqueezeBackward",
    "UnsqueezeBackward",
    "ExpandBackward",
)
"""Nodes of operations that leave the entries of a tensor in their order."""


def walk(roots: list[Tensor]) -> Iterator[Any]:
    """Every node of the graphs of tensors, the outputs first."""
    yield from walk_nodes([t.grad_fn for t in roots if t.grad_fn is not None])


def walk_nodes(nodes: list[Any], closed: Collection[Any] = ()) -> Iterator[Any]:
    """Every node from these on towards the inputs; nothing behind the ``closed`` ones."""
    waiting, seen = list(nodes), {*nodes, *closed}
    while waiting and len(seen) < MOST_NODES:
        node = waiting.pop()
        yield node
        for above, _ in node.next_functions:
            if above is not None and above not in seen:
                seen.add(above)
                waiting.append(above)


def leaves(roots: list[Tensor]) -> list[Tensor]:
    """The tensors that a backward would give a gradient."""
    return [node.variable for node in walk(roots) if hasattr(node, "variable")]


def saved(node: Any, name: str) -> Tensor | None:
    """A tensor that a node keeps for its backward; None for what it does not keep, or has freed."""
    try:
        found = getattr(node, name, None)
    except RuntimeError:
        return None
    return found if isinstance(found, Tensor) else None


def measure(node: Any) -> tuple[str, float] | None:
    """Signal and value of a node that can take gradients away; None for every other, and for one that was freed."""
    name = type(node).__name__
    found = next((rule for beginning, rule in _RULES.items() if name.startswith(beginning)), None)
    if found is None:
        return None
    try:
        signal, value = found(node)
    except (RuntimeError, AttributeError):  # Freed by a backward, or another release of torch saves something else.
        return None
    return None if math.isnan(value) else (signal, value)


def made_by(node: Any, known: Mapping[Any, str]) -> str:
    """Name of the module whose output led to a node, straight up its first inputs; empty when there is none."""
    for _ in range(50):
        if node is None:
            return ""
        if node in known:
            return known[node]
        node = next((above for above, _ in node.next_functions if above is not None), None)
    return ""


def reaches(node: Any, above: Any, most: int = 400) -> bool:
    """True when ``above`` lies before ``node`` within ``most`` operations."""
    waiting, seen = [node], {node}
    while waiting and len(seen) < most:
        one = waiting.pop()
        if one is above:
            return True
        for other, _ in one.next_functions:
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)
    return False


def limits(node: Any) -> tuple[float | None, float | None]:
    """Lower and upper limit of a clamp; None where it has none, or a tensor of many."""
    low = getattr(node, "_saved_min", None), getattr(node, "_saved_min_val", None)
    high = getattr(node, "_saved_max", None), getattr(node, "_saved_max_val", None)
    lower, upper = (next((_number(one) for one in pair if one is not None), None) for pair in (low, high))
    return lower, upper


def flat_behind(clamp: Any, users: Sequence[Any]) -> bool:
    """True for a clamp whose limits lie where all that read it are flat anyway, as a sigmoid is beyond ±8: it takes no gradient away."""
    known = [
        next((flat for beginning, flat in _FLAT.items() if type(user).__name__.startswith(beginning)), None)
        for user in users
    ]
    if not known or None in known:
        return False
    lower, upper = limits(clamp)
    most = max(flat for flat in known if flat is not None)
    return (lower is None or lower <= -most) and (upper is None or upper >= most) and (lower, upper) != (None, None)


def range_over_open(node: Any) -> float:
    """As of `_numbers`, of a node that clamps; NaN of ``minimum`` and ``maximum``, and where what entered is gone."""
    try:
        return numbers.range_over_open(node._saved_self, *limits(node))
    except (RuntimeError, AttributeError):
        return math.nan


def _clamp(node: Any) -> tuple[str, float]:
    return "place.clamped_share", numbers.cut_share(node._saved_self, *limits(node))


def _minimum(node: Any) -> tuple[str, float]:
    return _limited(node, high=True)


def _maximum(node: Any) -> tuple[str, float]:
    return _limited(node, high=False)


def _limited(node: Any, *, high: bool) -> tuple[str, float]:
    """``minimum`` and ``maximum`` with one constant are clamps by another name."""
    entering, limit = node._saved_self, node._saved_other
    if limit.numel() != 1 or limit.requires_grad:
        return "place.clamped_share", math.nan
    number = float(limit)
    return "place.clamped_share", numbers.cut_share(entering, None if high else number, number if high else None)


def _number(limit: Any) -> float | None:
    """A limit as a number; None where there is none or it is a tensor of many."""
    if isinstance(limit, Tensor):
        return float(limit) if limit.numel() == 1 else None
    return None if limit is None else float(limit)


_FLAT = {"SigmoidBackward": 8.0, "TanhBackward": 4.0}
"""Where the derivative of a function is below 1.4e-3."""

_RULES: Mapping[str, Callable[[Any], tuple[str, float]]] = {
    "ReluBackward": lambda node: ("place.dead_share", numbers.dead_share(node._saved_result)),
    "TanhBackward": lambda node: ("place.saturated_share", numbers.saturated_share(node._saved_result)),
    "ClampMinBackward": _clamp,
    "ClampMaxBackward": _clamp,
    "ClampBackward": _clamp,
    "HardtanhBackward": _clamp,
    "MinimumBackward": _minimum,
    "MaximumBackward": _maximum,
}
"""Beginning of a node's class name → what is measured of it. ``clamp(min=0)`` is a ReLU and cuts nothing that counts."""
