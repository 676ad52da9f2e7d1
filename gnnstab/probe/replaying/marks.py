"""One number far away from all others that is a mark of missing values, and what the gradient of a squared error shows of its targets."""

from __future__ import annotations

import json

from torch import Tensor

from gnnstab.probe.replaying.recovered_loss import squared_targets
from gnnstab.records import Measure
from gnnstab.records.vocabulary import LOSS_MARKED_TARGETS, LOSS_TARGET_RMS

FAR = 20.0
"""Distance of a mark from the mean of the other targets, in their standard deviations; measured values of 20 are not alike to the digit."""

LEAST = 3
"""Entries that must hold the mark."""

SAME = 1e-3
"""Relative difference up to which entries hold the same number: targets are recovered from gradients of fp32."""


def marked_targets(output: Tensor, gradient: Tensor, value: float, step: int, mode: str) -> list[Measure]:
    """The distance of the mark among the targets of a squared error, where there is one; the first arguments as of `recovered_loss`."""
    targets = squared_targets(output, gradient, value)
    found = None if targets is None else mark_among(targets, output.detach()[gradient != 0])
    if targets is None or found is None:
        return []
    alike, distance = found
    told = {"mark": float(f"{float(targets[alike][0]):.4g}"), "count": int(alike.sum()), "of": targets.numel()}
    return [Measure(step, "", mode, 0, LOSS_MARKED_TARGETS, -1, distance, json.dumps(told))]


def mark_among(values: Tensor, output: Tensor | None = None) -> tuple[Tensor, float] | None:
    """Which entries of ``values``, of any shape, hold one number far away from all others, and how far in their deviations; None where none do.

    Where all others are one number as well, neither is a mark. ``output``: what values of the same shape were recovered from, to the rounding of its entries.
    """
    for mark in (values.min(), values.max()) if values.numel() >= 2 * LEAST else ():
        alike = (values - mark).abs() <= SAME * mark.abs()
        others = values[~alike]
        if not LEAST <= int(alike.sum()) < len(others):
            continue
        size = max(float(t.abs().max()) for t in (others, others if output is None else output[~alike]))
        if float((others - others.mean()).abs().max()) > SAME * size:
            distance = float((mark - others.mean()).abs() / others.std())
            if distance > FAR:
                return alike, distance
    return None


def target_size(output: Tensor, gradient: Tensor, value: float, step: int, mode: str) -> list[Measure]:
    """The RMS of the targets of a squared error, beside that of the output; arguments as of `marked_targets`."""
    targets = squared_targets(output, gradient, value)
    if targets is None:
        return []
    told = {"output_rms": float(output.detach().double().square().mean().sqrt())}
    size = float(targets.square().mean().sqrt())
    return [Measure(step, "", mode, 0, LOSS_TARGET_RMS, -1, size, json.dumps(told))]
