"""The loss of a run that nobody handed over, recovered from its value, the output and the gradient that came back to the output."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnstab.errors import UsageError
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.probe.replaying.skipped_step import histories

CLOSE = 1e-3
"""Relative difference up to which gradient and value are those of a loss: the numbers of fp32 agree to 1e-5."""

_SURE = 1e-4
"""1 − p of a class from which on its gradient is larger than its rounding."""

_UNITS = (1.0, *(10.0**power for power in range(-15, -2)))
"""What the squares may be multiplied by: a loss in a unit of its own, a thousand times the usual one or more."""

Recovered = Callable[[Any, Any], Tensor]
"""``loss(output, batch)``; the batch is not read, its targets are known."""


def recovered_loss(output: Tensor, gradient: Tensor, value: float, given: Iterable[Tensor] = ()) -> Recovered | None:
    """Cross-entropy, its mean over soft targets, binary cross-entropy with logits, a squared, absolute or Huber's error with the targets of one step; None where it is none of them.

    Args:
        output: (N, C) or any other shape, as the model returned it.
        gradient: Of the loss with respect to it, same shape.
        value: Of the loss.
        given: Tensors of the batch. Of an absolute error, whose gradient does not tell how far a target lies off, one of them must be the targets.

    Gradient and value must both be those of the loss that is returned; an objective of several parts is none. Rows of
    classes that are so right that nothing comes back to them are read where the loss is the mean of all; else they are left out: nobody knows which
    of them it reads. Nor are the targets known in the linear part of Huber's loss: they are put at one distance.
    """
    output, gradient = output.detach().double(), gradient.detach().double()
    if output.shape != gradient.shape or not (math.isfinite(value) and value > 0):
        return None
    if not bool(gradient.isfinite().all()) or not bool(gradient.any()):
        return None
    for recover in (_cross_entropy, _soft, _binary, _squared, _huber):
        found = recover(output, gradient, value)
        if found is not None:
            return _of_its_part(found, output.shape)
    for target in given:
        if target.numel() == output.numel() and not target.is_complex() and target.layout is torch.strided:
            found = _linear(output, gradient, value, target.detach().to(output).view_as(output))
            if found is not None:
                return _of_its_part(found, output.shape)
    return None


def _of_its_part(loss: Recovered, shape: torch.Size) -> Recovered:
    """The same loss of all that the model returns, of which it reads one tensor: the one with a history, else the first of that shape."""

    def read(result: Any, batch: Any) -> Tensor:
        if not isinstance(result, Tensor):
            with_history = histories(result)
            alike = (tensor for _, tensor in tensors_in(result) if tensor.shape == shape)
            result = with_history[0] if len(with_history) == 1 else next(alike, None)
        if result is None or result.shape != shape:
            got = "none" if result is None else tuple(result.shape)
            raise UsageError(
                f"the loss was found from one step's gradients: it reads answers of shape {tuple(shape)}, not {got}"
            )
        return loss(result, batch)

    return read


def _cross_entropy(output: Tensor, gradient: Tensor, value: float) -> Recovered | None:
    if output.dim() < 2 or output.shape[-1] < 2:
        return None
    output, gradient = output.flatten(0, -2), gradient.flatten(0, -2)
    rows = gradient.abs().amax(1) > 0
    own, log_p = gradient[rows], torch.log_softmax(output[rows], 1)
    label = own.argmin(1, keepdim=True)
    p = log_p.exp()
    rest = 1 - p.gather(1, label)
    sure = rest.squeeze(1) > _SURE
    if not bool(sure.any()):
        return None
    weight = torch.where(rest > _SURE, -own.gather(1, label) / rest.clamp(min=_SURE), math.nan)
    weight = torch.where(weight.isnan(), weight[sure].median(), weight)
    made = weight * (p - torch.zeros_like(p).scatter(1, label, 1.0))
    if bool((weight < 0).any()) or not _same(made, own):
        return None
    told = float(-(weight * log_p.gather(1, label)).sum())
    if abs(told - value) > CLOSE * value:
        return None
    mean = torch.full_like(weight, 1 / len(output))
    if _same(weight, mean):  # Of all rows: those that nothing comes back to are right.
        label = output.argmax(1, keepdim=True).masked_scatter(rows[:, None], label)
        weight, rows = mean[:1], torch.ones_like(rows)

    def loss(result: Any, batch: Any) -> Tensor:
        log = torch.log_softmax(result.flatten(0, -2)[rows].float(), 1)
        return -(weight.to(log) * log.gather(1, label)).sum()

    return loss


def _soft(output: Tensor, gradient: Tensor, value: float) -> Recovered | None:
    """The mean cross-entropy with smoothed labels, or shares of classes: its gradient is (p − q)/n, so that the value tells whether these q are its targets."""
    if output.dim() < 2 or output.shape[-1] < 2:
        return None
    log_p = torch.log_softmax(output.flatten(0, -2), 1)
    target = log_p.exp() - gradient.flatten(0, -2) * len(log_p)
    if bool((target < -CLOSE).any()) or bool(((target.sum(1) - 1).abs() > CLOSE).any()):
        return None
    if abs(float(-(target * log_p).sum(1).mean()) - value) > CLOSE * value:
        return None

    def loss(result: Any, batch: Any) -> Tensor:
        log = torch.log_softmax(result.flatten(0, -2).float(), 1)
        return -(target.to(log) * log).sum(1).mean()

    return loss


def _binary(output: Tensor, gradient: Tensor, value: float) -> Recovered | None:
    kept = gradient != 0
    own, score = gradient[kept], output[kept]
    target = (own < 0).double()
    gap = (torch.sigmoid(score) - target).abs()
    sure = gap > _SURE
    if not bool(sure.any()):
        return None
    weight = (own.abs()[sure] / gap[sure]).median()
    told = float(weight * F.binary_cross_entropy_with_logits(score, target, reduction="sum"))
    if not _same(weight * (torch.sigmoid(score) - target), own) or abs(told - value) > CLOSE * value:
        return None
    if abs(float(weight) * output.numel() - 1) <= CLOSE:  # Of all entries: those that nothing comes back to are right.
        target, kept = (output > 0).double().masked_scatter(kept, target).flatten(), torch.ones_like(kept)

    def loss(result: Any, batch: Any) -> Tensor:
        entries = result[kept].float()
        summed: Tensor = F.binary_cross_entropy_with_logits(entries, target.to(entries), reduction="sum")
        return weight.to(entries) * summed

    return loss


def _squared(output: Tensor, gradient: Tensor, value: float) -> Recovered | None:
    """κ·‖o − y‖² has the gradient 2κ(o − y), so that κ = ‖g‖²/4L; it counts where κ is that of a mean or of a sum, or of one in a far larger unit."""
    found = _squares(output, gradient, value)
    if found is None:
        return None
    kept, factor, target = found

    def loss(result: Any, batch: Any) -> Tensor:
        entries = result[kept].float()
        total: Tensor = factor * (entries - target.to(entries)).square().sum()
        return total

    return loss


def _huber(output: Tensor, gradient: Tensor, value: float) -> Recovered | None:
    """Mean of d²/2 up to a distance d of δ, and of δ(d − δ/2) beyond it: there gradients are ±δ/n, and the value tells how far those targets lie off on average.

    It counts where several gradients are the largest one, and fewer than half, which an absolute error has alone.
    """
    kept = gradient != 0
    apart = gradient[kept] * int(kept.sum())
    size = apart.abs()
    delta = float(size.max())
    beyond = size >= (1 - CLOSE**2) * delta
    count = int(beyond.sum())
    if not 2 <= count < len(size) / 2:
        return None
    off = (value * len(size) - 0.5 * float(size[~beyond].square().sum())) / (count * delta) + 0.5 * delta
    if off < delta:
        return None
    target = output[kept] - torch.where(beyond, off * apart.sign(), apart)

    def loss(result: Any, batch: Any) -> Tensor:
        entries = result[kept].float()
        return F.huber_loss(entries, target.to(entries), delta=delta)

    return loss


def _linear(output: Tensor, gradient: Tensor, value: float, target: Tensor) -> Recovered | None:
    """κ·|o − y|, or Huber's loss of slope κ: entries further off than δ have the gradient ±κ, the others κ/δ·(o − y)."""
    kept = gradient != 0
    own, apart, aim = gradient[kept], (output - target)[kept], target[kept]
    slope = float(own.abs().max())
    beyond = own.abs() >= (1 - CLOSE**2) * slope
    near = apart[~beyond]
    delta = slope * float(near.norm() / own[~beyond].norm()) if len(near) else 0.0
    made = slope * (apart / delta).clamp(-1, 1) if delta else slope * apart.sign()
    if not beyond.any() or not _same(made, own):
        return None

    def loss(result: Any, batch: Any) -> Tensor:
        entries = result[kept].float()
        apart = entries - aim.to(entries)
        # Huber's with δ towards 0, over δ, is the absolute error.
        total: Tensor = slope * (
            F.huber_loss(entries, aim.to(entries), delta=delta, reduction="sum") / delta if delta else apart.abs().sum()
        )
        return total

    return loss if abs(float(loss(output, None)) - value) <= CLOSE * value else None


def squared_targets(output: Tensor, gradient: Tensor, value: float) -> Tensor | None:
    """The targets of a squared error, those that the output is not equal to; None for another loss. Arguments as of `recovered_loss`."""
    output, gradient = output.detach().double(), gradient.detach().double()
    usable = output.shape == gradient.shape and math.isfinite(value) and value > 0 and bool(gradient.any())
    found = _squares(output, gradient, value) if usable and bool(gradient.isfinite().all()) else None
    return None if found is None else found[2]


def is_squared_error_of(targets: Tensor, output: Tensor, gradient: Tensor, value: float) -> bool:
    """True where a loss of ``value`` is the squared error of these ``targets`` as they are, times any factor.

    κ·‖o − y‖² has the gradient 2κ(o − y): it lies along o − y, and κ from the loss is κ from the gradient. Of targets that the loss
    scales itself it is not.
    """
    if targets.numel() != output.numel() or output.shape != gradient.shape or not value > 0:
        return False
    gradient = gradient.detach().double().flatten()
    apart = output.detach().double().flatten() - targets.detach().double().flatten()
    along = float(gradient @ apart)
    if not along >= (1 - CLOSE) * float(gradient.norm() * apart.norm()) > 0:
        return False
    by_loss, by_gradient = value / float(apart @ apart), along / (2 * float(apart @ apart))
    return abs(by_loss - by_gradient) <= CLOSE * by_loss


def is_absolute_error_of(targets: Tensor, output: Tensor, gradient: Tensor, value: float) -> bool:
    """True where a loss of ``value`` is the absolute error of these ``targets`` as they are, times any factor.

    κ·Σ|o − y| has the gradient κ·sign(o − y), and is what that has along o − y.
    """
    if targets.shape != output.shape or output.shape != gradient.shape or not value > 0:
        return False
    gradient = gradient.detach().double().flatten()
    apart = output.detach().double().flatten() - targets.detach().double().flatten()
    size = float(gradient.abs().max()) if gradient.numel() else 0.0
    alike = bool(((gradient - size * apart.sign()).abs() <= CLOSE * size).all())
    return alike and abs(float(gradient @ apart) - value) <= CLOSE * value


def _squares(output: Tensor, gradient: Tensor, value: float) -> tuple[Tensor, float, Tensor] | None:
    """Which entries are compared, κ, and their targets."""
    kept = gradient != 0
    own = gradient[kept]
    factor = float(own.square().sum()) / (4 * value)
    rows = int(kept.reshape(len(kept), -1).any(1).sum()) if kept.dim() else 1
    usual = (1.0, 0.5, 1 / own.numel(), 0.5 / own.numel(), 1 / rows, 0.5 / rows)
    if not any(abs(factor - one * unit) <= CLOSE * one * unit for one in usual for unit in _UNITS):
        return None
    return kept, factor, output[kept] - own / (2 * factor)


def _same(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm()) <= CLOSE * float(other.norm())
