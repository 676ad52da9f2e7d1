"""How a sum aggregation grows with the in-degree."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.statistics.groups import group_sizes, group_sum
from gnnstab.probe.statistics.numbers import Measured, mean_where, quiet, square_sum, undefined, wide


@quiet
def aggregation_measures(messages: Tensor, index: Tensor, size: int) -> dict[str, Measured]:
    """RMS of the summed messages and the exponent p in RMS ∝ in-degree^p.

    ``messages`` (E, …) before the reduction, ``index`` (E,) their targets, ``size`` the number of targets.

    ``aggregation.rms`` is taken over the targets with at least one edge. ``aggregation.exponent`` is
    log₂(RMS of the sum over all edges / RMS of the sum over half of each target's edges), over the targets with at
    least two edges. Instead of drawing one half it takes the mean square over all halves in closed form: with S = Σ‖m‖²
    and T = Σm over the d edges of a target, a half of the edges has E‖·‖² = S/2 + (‖T‖² − S)(d − 2)/(4(d − 1)). So no
    random number is drawn and the order of the edges does not matter. Independent zero-mean messages (‖T‖² ≈ S) give
    p ≈ ½, aligned ones (‖T‖² = d·S) give 1 exactly, messages that cancel go towards −∞.
    """
    if messages.shape[0] == 0:
        nothing = Measured(undefined(messages))
        return {"aggregation.rms": nothing, "aggregation.exponent": nothing}
    messages = wide(messages.flatten(1) if messages.dim() > 1 else messages.unsqueeze(1))
    degree = group_sizes(index, size)
    whole = square_sum(group_sum(messages, index, size), dim=1)
    single = group_sum(square_sum(messages, dim=1), index, size)
    mean_square = mean_where(whole, degree > 0) / messages.shape[1]
    return {
        "aggregation.rms": Measured(mean_square.sqrt()),
        "aggregation.exponent": Measured(_exponent(whole, single, degree)),
    }


def _exponent(whole: Tensor, single: Tensor, degree: Tensor) -> Tensor:
    several = degree >= 2
    pairs = (degree - 2) / (4 * (degree - 1).clamp(min=1))
    half = single / 2 + (whole - single) * pairs
    return torch.log2(mean_where(whole, several) / mean_where(half, several)) / 2
