"""What a loss was computed by, read from its autograd graph: names of operations and sizes, which outlive the backward."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from gnnstab.records.vocabulary import SINGULAR_OPERATION

SHOWN = 8
"""Nodes that are told; behind them stands the model."""

LOOKED_AT = 100
"""Nodes that are searched."""

_SPREADS = ("Std", "Var", "StdMean", "VarMean")

_LINEAR = ("Addmm",)
"""A linear layer, which is of the model: what stands behind it made a finite output."""

_QUIET = ("View", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "T", "Alias", "Clone", "Transpose", "Permute")


def chain(loss: Any) -> str:
    """``mean ← neg ← log ← sigmoid ← sub; beside it std``: the graph of a loss along its first operands, and what stands beside
    them as near to it and can make a NaN of finite numbers; empty for a loss without a graph."""
    node = loss.grad_fn if isinstance(loss, Tensor) else None
    names: list[str] = []
    while node is not None and len(names) < SHOWN:
        kind = _kind(node)
        if kind == "AccumulateGrad":
            break
        if kind not in _QUIET:
            names.append(_words(kind))
        node = next((following for following, _ in node.next_functions if following is not None), None)
    beside = dict.fromkeys(_words(_kind(node)) for node, depth in _nodes(loss, _LINEAR) if depth < SHOWN)
    told = [name for name in beside if name not in names and SINGULAR_OPERATION.search(name)]
    return " ← ".join(names) + (f"; beside it {', '.join(told)}" if told else "")


def of_too_few(loss: Any) -> str:
    """``mean takes the mean of a tensor without entries``: the reduction in a graph that is 0/0 by its sizes; empty where there is none."""
    for node, _ in _nodes(loss):
        kind, made = _kind(node), _made(node, 0)
        taken = [_made(*operand) for operand in node.next_functions if operand[0] is not None]
        # A number that was saved for the backward stays when the tensors are freed; a reduction of 1 is the mean.
        if made != 0 and 0 in taken and (kind == "Mean" or getattr(node, "_saved_reduction", None) == 1):
            return f"{_words(kind)} takes the mean of a tensor without entries"
        if (
            kind in _SPREADS and made and made in taken and getattr(node, "_saved_correction", 0) in (None, 1)
        ):  # None is the default, 1
            return f"{_words(kind)} divides the spread of a single entry by 1 − 1"
    return ""


def _nodes(loss: Any, ends: Sequence[str] = ()) -> Iterator[tuple[Any, int]]:
    """The nodes of a loss and their distance from it, the nearest first; nothing behind a node of the kinds ``ends``."""
    waiting = deque([(loss.grad_fn if isinstance(loss, Tensor) else None, 0)])
    seen: set[Any] = set()
    while waiting and len(seen) < LOOKED_AT:
        node, depth = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node, depth
        if _kind(node) not in ends:
            waiting += [(following, depth + 1) for following, _ in node.next_functions]


def _made(node: Any, place: int) -> int | None:
    """How many entries the output of a node has; None where it does not tell."""
    shapes = [one.shape for one in getattr(node, "_input_metadata", ())]
    return math.prod(shapes[place]) if place < len(shapes) else None


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", str(node.name()).rpartition("::")[2])


def _words(kind: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
