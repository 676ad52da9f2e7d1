"""Rows of the input that the code divides by their own length, and the same rows with that length, relative to the others, on a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.optimizer._suspects import Suspect, unchanged

_VARIES = 0.1
"""Standard deviation of ln(length) over the rows from which on lengths differ."""

_ONE = 1e-3
"""Distance of the length of a result from 1, in any norm, up to which it was divided by it."""

_FEWEST = 8
"""Rows that are looked at; fewer say nothing."""


def row_lengths(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """What ``forward`` of ``model``, a copy, brings to one length before any weight is reached."""
    look = _Lengths(Modules(model))
    with look:
        forward()
    if look.rows:
        line = f" ({look.line})" if look.line else ""
        yield Suspect(
            "normalization-misuse", (), "keeping the lengths of these rows",
            f"the forward divides {look.rows} rows of the input by their own sum or length{line}, and how large a row is beside the others is lost",
            unchanged, _Lengths(),
        )  # fmt: skip


class _Lengths(TorchFunctionMode):
    """Within the block: counts rows of inputs that are divided by their length, in which line of ``modules``; without them multiplies the results with it."""

    def __init__(self, modules: Modules | None = None) -> None:
        super().__init__()
        self.rows, self.line, self._modules = 0, "", modules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        lengths = _divided_by(func, args, result) if func in _QUOTIENTS else None
        if lengths is None:
            return result
        if self._modules is None:
            return result * lengths
        self.rows += lengths.numel()
        self.line = self.line or caller_place(self._modules, "model")[0].words
        return result


_QUOTIENTS = (F.normalize, torch.div, torch.true_divide, Tensor.div, Tensor.true_divide, Tensor.__truediv__)


def _divided_by(func: Any, args: Any, result: Any) -> Tensor | None:
    """(…, 1) lengths of the rows of a quotient that are of length 1, over their mean; None for any other, and where all are as long."""
    whole = args[0] if args else None
    if not isinstance(whole, Tensor) or not isinstance(result, Tensor) or whole.requires_grad or result.dim() < 2:
        return None
    if whole.shape != result.shape or not whole.is_floating_point() or result[..., 0].numel() < _FEWEST:
        return None
    for norm in (2, 1, float("inf")):
        left = torch.linalg.vector_norm(result, norm, -1)
        if bool(((left - 1).abs() < _ONE)[whole.any(-1)].all()) and result.shape[-1] > 1:
            lengths = torch.linalg.vector_norm(whole, norm, -1, keepdim=True)
            spread = lengths[lengths > 0].log().std() if int((lengths > 0).sum()) >= _FEWEST else torch.zeros(())
            return lengths / lengths.mean() if float(spread) > _VARIES else None
    return None
