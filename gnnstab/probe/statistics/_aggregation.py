"""How a sum aggregation grows with the in-degree."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.statistics._groups import group_sizes, group_sum
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

    A half of messages that were divided by the in-degree is no sum at half the in-degree: those messages would have been
    larger. So twice the power q with which the messages themselves fall over nodes of different in-degree is taken off: q is
    1 for attention weights and ½ for GCN's, which fall with the in-degree of the source as well. What counts of q is what
    its standard error leaves for certain (97.5 %); nothing where all in-degrees are alike.
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
        "aggregation.exponent": Measured(_exponent(whole, single, degree) - 2 * _decay(single, degree)),
    }


@quiet
def growth_over_degree(total: Tensor, degree: Tensor) -> Tensor:
    """The power of the in-degree with which rows of ``total`` (N, D) grow, what chance can make taken off; 0-d, 0 at least.

    ``degree`` (N,) edges of every row. The slope of ln(norm of a row) against ln(in-degree) over the rows with an edge, less what its
    standard error leaves open (97.5 %). Weights that a softmax has normalised give 0 and less: a mean of more rows is no larger.
    """
    return _certain(square_sum(wide(total), dim=1), degree, 1.0)


def _decay(single: Tensor, degree: Tensor) -> Tensor:
    """The power of the in-degree by which messages are smaller at their target, what chance can make taken off; 0 at least."""
    return _certain(single / degree.clamp(min=1), degree, -1.0)


def _certain(square: Tensor, degree: Tensor, sign: float) -> Tensor:
    """Slope of ln(√square) against ln(degree), times ``sign``, less its standard error at 97.5 %; 0 at least, and where all degrees are alike."""
    seen = (degree > 0) & (square > 0)
    x = torch.where(seen, degree.clamp(min=1).log(), 0.0)
    y = torch.where(seen, square.log() / 2, 0.0)
    count = seen.sum()
    x = torch.where(seen, x - x.sum() / count, 0.0)
    y = torch.where(seen, y - y.sum() / count, 0.0)
    spread = x.square().sum()
    slope = (x * y).sum() / spread
    freedom = count - 2
    error = ((y - slope * x).square().sum() / freedom / spread).sqrt()
    # 2 + 10/n² is near the 97.5 % quantile of Student's t at any n, and needs no table.
    certain = (sign * slope - (2 + 10 / freedom.square()) * error).clamp(min=0)
    return torch.where((count > 2) & (spread > 1e-9), certain, torch.zeros_like(certain))


def _exponent(whole: Tensor, single: Tensor, degree: Tensor) -> Tensor:
    several = degree >= 2
    pairs = (degree - 2) / (4 * (degree - 1).clamp(min=1))
    half = single / 2 + (whole - single) * pairs
    return torch.log2(mean_where(whole, several) / mean_where(half, several)) / 2
