"""What a loss was computed by, read from its autograd graph: names of operations and sizes, which outlive the backward."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

SHOWN = 8
"""Nodes that are told; behind them stands the model."""

LOOKED_AT = 100
"""Nodes that are searched for a mean over nothing."""

_QUIET = ("View", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "T", "Alias", "Clone", "Transpose", "Permute")


def chain(loss: Any) -> str:
    """``mean ← neg ← log ← sigmoid ← sub``: the graph of a loss along its first operands; empty for one without a graph."""
    node = loss.grad_fn if isinstance(loss, Tensor) else None
    names: list[str] = []
    while node is not None and len(names) < SHOWN:
        kind = _kind(node)
        if kind == "AccumulateGrad":
            break
        if kind not in _QUIET:
            names.append(_words(kind))
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return " ← ".join(names)


def mean_of_nothing(loss: Any) -> str:
    """The operation that takes the mean of a tensor without entries, which is NaN; empty where the graph shows none."""
    waiting = [loss.grad_fn] if isinstance(loss, Tensor) else []
    seen: set[Any] = set()
    while waiting and len(seen) < LOOKED_AT:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        # A number that was saved for the backward stays when the tensors are freed; 1 is the mean.
        means = _kind(node) == "Mean" or getattr(node, "_saved_reduction", None) == 1
        if means and _made(node, 0) != 0 and any(_made(*operand) == 0 for operand in node.next_functions):
            return _words(_kind(node))
        waiting += [following for following, _ in node.next_functions]
    return ""


def _made(node: Any, place: int) -> int | None:
    """How many entries the output of a node has; None where it does not tell."""
    shapes = [one.shape for one in getattr(node, "_input_metadata", ())]
    return math.prod(shapes[place]) if place < len(shapes) else None


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", str(node.name()).rpartition("::")[2])


def _words(kind: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
