"""Node states around a layer: scale, message against skip, channels, saturation, clamps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnnstab.layers import Call, Layer
from gnnstab.probe.statistics.numbers import (
    Measured,
    exact,
    extremes,
    fine,
    highest,
    largest,
    rms,
    share,
    square_sum,
)

HUB_SHARE = 100
"""Targets among the N/100 largest in-degrees are hubs."""

TANH_LIMIT = 0.97
"""|tanh| beyond this passes less than 6 % of the gradient."""


def peak(*parts: Tensor) -> Tensor:
    """Largest |entry| of all parts, 0-d."""
    return torch.stack([highest(largest(*extremes(part))) for part in parts]).max()


def gate_measures(gate: Tensor | None) -> dict[str, Measured]:
    """Mean of the β gate (N, 1) and the share of gates that are shut or wide open."""
    if gate is None:
        return {}
    values = fine(gate)
    shut = share((values < 0.05) | (values > 0.95), ~values.isnan())
    return {"gate.mean": Measured(values.mean()), "gate.saturated_share": Measured(shut)}


def message_measures(call: Call, kind: Layer, module: nn.Module, degree: Tensor) -> dict[str, Measured]:
    """RMS of the aggregated message and of the linear skip, and the hubs' message against the skip.

    A message that was not observed is the output minus the skip, where the layer adds the two; with the gate on it
    cannot be told apart and is left out. The difference carries the rounding of the output's dtype.
    """
    skip = kind.skip(module, call.x_target)
    message = call.message if call.message is not None else kind.message(module, call, skip)
    numbers: dict[str, Measured] = {}
    if message is not None:
        numbers["message.rms"] = Measured(rms(message))
    if skip is not None:
        numbers["skip.rms"] = Measured(rms(skip))
    if message is not None and skip is not None:
        numbers["hub.message_share"] = Measured(_hub_rms(message, degree) / rms(skip))
    return numbers


def _hub_rms(message: Tensor, degree: Tensor) -> Tensor:
    """RMS of the messages to the targets whose in-degree is among the largest 1 % (ties included)."""
    if degree.numel() == 0 or message.numel() == 0:
        return rms(message[:0])
    limit = degree.topk(math.ceil(degree.numel() / HUB_SHARE)).values.min()
    hubs = (degree >= limit) & (degree > 0)
    energy = torch.where(hubs, square_sum(message, dim=1), 0.0).sum()
    return (energy / (hubs.sum() * message.shape[1])).sqrt()


def dead_share(output: Tensor) -> Tensor:
    """Share of columns of ``output`` (N, D) that are ≤ 0 on every node, and so 0 behind a ReLU."""
    _, high = extremes(output)
    return share(high <= 0, ~high.isnan())


def tanh_saturated_share(x: Tensor) -> Tensor:
    """Share of |x| > 0.97 when every entry lies within [−1, 1], as behind a tanh; 0 when one lies outside."""
    size = x.detach().abs()
    top = highest(size)
    part = share(size > TANH_LIMIT, ~top.isnan())
    return torch.where(top > 1, 0.0, part)


def underflow_share(x: Tensor) -> Tensor:
    """Share of non-zero entries below the smallest normal number of the tensor's own dtype."""
    size = x.detach().abs()
    return share((size > 0) & (size < torch.finfo(x.dtype).tiny), ~highest(size).isnan())


def clip_share(x: Tensor) -> Tensor:
    """Share of the entries of ``x`` (N, D) that sit on the limit of an active clamp.

    A clamp leaves many exactly equal extremes, in several columns. So the maximum counts when it occurs in at least
    two columns, and the minimum when it does too and is the mirror image of the maximum (±c). That leaves out
    what looks alike: ReLU zeros and SiLU, GELU or ELU floors (no mirror image), ±1 (tanh rounded to 1, one-hot and sign
    features; a clamp at ±1 is therefore not seen), nodes of the same kind (their shared extreme sits in one column),
    columns of integer codes (whole numbers with values between the extremes) and marks (nothing but 0 and the maximum,
    as binary features behind a dropout). NaN for a single column, where
    nothing can be told.
    """
    if x.shape[0] == 0 or x.shape[1] < 2:
        return rms(x[:0])
    x = x.detach()
    low, high = x.min(), x.max()
    at_high, at_low = x == high, x == low
    between = ~(at_high | at_low | (x == 0))
    coded = (x == x.round()).all(0) & between.any(0) | (at_high | (x == 0)).all(0)
    upper = _on_limit(at_high, high, coded)
    lower = _on_limit(at_low & (low == -high), low, coded)
    part = (upper + lower) / x.numel()
    return torch.where((high - low).isnan(), torch.nan, part)


def _on_limit(at_limit: Tensor, limit: Tensor, coded: Tensor) -> Tensor:
    counts = torch.where(coded, 0, at_limit.sum(0))
    is_clamp = ((counts > 0).sum() >= 2) & (limit != 0) & (limit.abs() != 1)
    return torch.where(is_clamp, counts.sum(), 0).to(exact(limit.device))
