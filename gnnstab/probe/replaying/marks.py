"""What the gradient of a squared error shows of its targets: their size, and one number far away from all others that is a mark of missing values."""

from __future__ import annotations

import json

from torch import Tensor

from gnnstab.probe.replaying.recovered_loss import squared_targets
from gnnstab.records import Measure
from gnnstab.records.vocabulary import LOSS_MARKED_TARGETS, LOSS_TARGET_RMS

FAR = 20.0
"""Distance of a mark from the mean of the other targets, in their standard deviations; measured values of 20 are not alike to the digit."""

LEAST = 3
"""Targets that must hold the mark."""

SAME = 1e-3
"""Relative difference up to which targets hold the same number: they are recovered from gradients of fp32."""


def marked_targets(output: Tensor, gradient: Tensor, value: float, step: int, mode: str) -> list[Measure]:
    """The distance of the mark among the targets of a squared error, where there is one; the first arguments as of `recovered_loss`."""
    targets = squared_targets(output, gradient, value)
    if targets is None or targets.numel() < 2 * LEAST:
        return []
    for mark in (targets.min(), targets.max()):
        alike = (targets - mark).abs() <= SAME * mark.abs()
        others = targets[~alike]
        if LEAST <= int(alike.sum()) < len(others) and float(others.std()) > 0:
            distance = (mark - others.mean()).abs() / others.std()
            if float(distance) > FAR:
                told = {"mark": float(f"{float(mark):.4g}"), "count": int(alike.sum()), "of": targets.numel()}
                return [Measure(step, "", mode, 0, LOSS_MARKED_TARGETS, -1, float(distance), json.dumps(told))]
    return []


def target_size(output: Tensor, gradient: Tensor, value: float, step: int, mode: str) -> list[Measure]:
    """The RMS of the targets of a squared error, beside that of the output; arguments as of `marked_targets`."""
    targets = squared_targets(output, gradient, value)
    if targets is None:
        return []
    told = {"output_rms": float(output.detach().double().square().mean().sqrt())}
    size = float(targets.square().mean().sqrt())
    return [Measure(step, "", mode, 0, LOSS_TARGET_RMS, -1, size, json.dumps(told))]
