"""Scores before the softmax, and the attention after it."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.statistics._groups import group_sum
from gnnstab.probe.statistics._histogram import spread
from gnnstab.probe.statistics.numbers import Measured, extremes, fine, highest, largest, lowest, mean_where, undefined

ONE_HOT = 0.1
"""A node-head with a normalised entropy below this puts nearly all of its attention on one edge."""

FP16_MAX = torch.finfo(torch.float16).max


def score_measures(score: Tensor, index: Tensor, degree: Tensor) -> dict[str, Measured]:
    """Extremes and spread of ``score`` (E, H), over targets ``index`` (E,) of in-degree ``degree`` (N,)."""
    low, high = extremes(score)
    values = fine(score)
    within = _within_variance(values, index, degree)
    logs = mean_where(degree.log(), degree >= 3)
    return {
        "score.min": Measured(lowest(low), low),
        "score.max": Measured(highest(high), high),
        "score.max_abs": Measured(highest(largest(low, high)), largest(low, high)),
        "score.std": _deviation(values)._replace(spread=spread(values, low, high)),
        "score.within_std": Measured(within.mean().sqrt(), within.sqrt()),
        "score.rho": Measured(within.mean() / (2 * logs), within / (2 * logs)),
    }


def _deviation(values: Tensor) -> Measured:
    """Population standard deviation over all edges, together and per head."""
    if values.shape[0] == 0:
        return Measured(undefined(values), undefined(values, values.shape[1]))
    return Measured(values.std(correction=0), values.std(0, correction=0))


def _within_variance(values: Tensor, index: Tensor, degree: Tensor) -> Tensor:
    """(H,) mean over the targets of in-degree ≥ 3 of the population variance of a target's scores."""
    counts = degree.clamp(min=1).unsqueeze(1)
    mean = group_sum(values, index, degree.numel()) / counts
    deviation = values - mean.index_select(0, index)
    variance = group_sum(deviation.square_(), index, degree.numel()) / counts
    return mean_where(variance, degree >= 3)


def entropy_measures(attention: Tensor, index: Tensor, degree: Tensor, suffix: str = "") -> dict[str, Measured]:
    """Entropy Ĥ = −Σα ln α / ln(in-degree) of ``attention`` (E, H) and the share of node-heads with Ĥ < 0.1.

    Over the targets of in-degree ≥ 2, since a single edge leaves nothing to choose from.
    """
    several = degree >= 2
    alpha = fine(attention)
    information = -group_sum(torch.xlogy(alpha, alpha), index, degree.numel())
    entropy = information / degree.clamp(min=2).log().unsqueeze(1)
    one_hot = torch.where(entropy.isnan(), entropy, (entropy < ONE_HOT).to(entropy.dtype))
    mean, peaked = mean_where(entropy, several), mean_where(one_hot, several)
    return {
        f"attention.entropy{suffix}": Measured(mean.mean(), mean),
        f"attention.one_hot_share{suffix}": Measured(peaked.mean(), peaked),
    }


def precision_measures(score: Tensor, product: float | None) -> dict[str, Measured]:
    """Rounding of the scores in their own dtype, and how far the largest number on the way to them stays below fp16's.

    ``product`` is that number over the score (√C where q·k is divided by it), else None and the headroom is left out.
    """
    peak = largest(*extremes(score))
    unit = torch.finfo(score.dtype).eps / 2
    numbers = {"precision.rounding": Measured(highest(peak) * unit, peak * unit)}
    if product is not None:
        headroom = FP16_MAX / (peak * product)
        numbers["precision.fp16_headroom"] = Measured(lowest(headroom), headroom)
    return numbers
