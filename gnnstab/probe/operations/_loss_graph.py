"""The names of the operations that a loss was computed by, read from its autograd graph; they outlive the backward."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

SHOWN = 8
"""Nodes that are told; behind them stands the model."""

_QUIET = ("View", "UnsafeView", "Unsqueeze", "Squeeze", "Expand", "T", "Alias", "Clone", "Transpose", "Permute")


def chain(loss: Any) -> str:
    """``mean ← neg ← log ← sigmoid ← sub``: the graph of a loss along its first operands; empty for one without a graph."""
    node = loss.grad_fn if isinstance(loss, Tensor) else None
    names: list[str] = []
    while node is not None and len(names) < SHOWN:
        kind = re.sub(r"Backward\d*$", "", str(node.name()).rpartition("::")[2])
        if kind == "AccumulateGrad":
            break
        if kind not in _QUIET:
            names.append(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower())
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return " ← ".join(names)
