"""The loss of an output over that of an output of zeros: far above 1 the output is too large to be of use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnnstab.errors import let_through
from gnnstab.probe.replaying.replica import mapped


def loss_over_zero(
    output: Any,
    value: float,
    batch: Any,
    loss: Callable[[Any, Any], Tensor] | None,
    put: Callable[[Tensor], Tensor] = torch.zeros_like,
) -> float:
    """The loss over that of what ``put`` makes of the output; NaN without a loss, or where one of the two is not positive and finite."""
    if loss is None:
        return math.nan
    try:
        with torch.no_grad():
            zero = float(loss(mapped(output, lambda t: put(t) if t.is_floating_point() else t), batch))
    except Exception as error:
        let_through(error)
        return math.nan  # A stranger's loss may take no zeros.
    return value / zero if 0 < zero < math.inf and 0 < value < math.inf else math.nan


def row_mean(output: Tensor) -> Tensor:
    """(N, …) the same answer for every row, their mean; zeros of a single row, which is its own mean."""
    return (
        output.mean(0, keepdim=True).expand_as(output) if output.dim() and len(output) > 1 else torch.zeros_like(output)
    )
