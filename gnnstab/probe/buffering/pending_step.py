"""A step that is over, whose numbers may still be on their way from a device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.buffering import device_copy
from gnnstab.probe.buffering.device_copy import DeviceCopy
from gnnstab.probe.buffering.stats_buffer import PendingStats
from gnnstab.records import StepRow

if TYPE_CHECKING:
    from gnnstab.probe.replaying.skipped_step import SkippedForward

Number = Tensor | float | None
"""A tensor of one entry, which may be on a device."""


class PendingStep:
    """What is kept of a step until its numbers are on the host.

    Args:
        step: Its number.
        time: Seconds since the run began.
        stats: The light tier.
        inputs: Mode → the arguments of its last forward, to run it again.
        loss: Training loss, where it is known.
        lr: Learning rate.
        scale: Loss scale.
        skipped: True, or an entry above 0, when a GradScaler skipped it.
    """

    __slots__ = (
        "_lr",
        "_norm",
        "_scale",
        "_skipped",
        "_told",
        "forwards",
        "inputs",
        "loss",
        "saved",
        "stats",
        "step",
        "time",
    )

    def __init__(
        self, step: int, time: float, stats: PendingStats, inputs: Mapping[str, ForwardInputs], *, loss: Number, lr: Number,
        scale: Number, skipped: Tensor | bool,
    ) -> None:  # fmt: skip
        self.step = step
        self.time = time
        self.stats = stats
        self.inputs = inputs
        self._told = loss
        # Most are plain numbers, for which a call would be the whole price.
        self.loss = _on_the_way(loss) if isinstance(loss, Tensor) else loss
        self._lr = _on_the_way(lr) if isinstance(lr, Tensor) else lr
        self._scale = _on_the_way(scale) if isinstance(scale, Tensor) else scale
        self._skipped = _on_the_way(skipped) if isinstance(skipped, Tensor) else skipped
        self._norm: DeviceCopy | float | None = None
        self.saved = False
        """True when the weights that the step had are kept, so that it can be run again after the update."""

        self.forwards: tuple[SkippedForward, ...] | None = None
        """Of a step that was left out, what it takes to run it again; None for a recorded one."""

    def leave_out(self, norm: Number, forwards: Sequence[SkippedForward]) -> None:
        """Of a step that was left out, all that was looked at: the norm of its gradients."""
        self._norm = _on_the_way(norm)
        self.forwards = tuple(forwards)

    @property
    def gradient_norm(self) -> float | None:
        """L2 norm of all gradients of a step that was left out; None without any."""
        return _arrived(self._norm)

    @property
    def waits(self) -> bool:
        """True when reading it now would wait for a device."""
        kinds = (type(self.loss), type(self._lr), type(self._scale), type(self._skipped), type(self._norm))
        return self.stats.waits or DeviceCopy in kinds

    def tell(self, loss: Tensor | float) -> None:
        """The loss became known after the step's end."""
        self._told = kept_of(self._told, loss)
        self.loss = _on_the_way(self._told)

    def result(self) -> tuple[float | None, float | None, float | None, bool]:
        """Loss, learning rate, loss scale, and whether the step was skipped."""
        return _arrived(self.loss), _arrived(self._lr), _arrived(self._scale), bool(_arrived(self._skipped))


def kept_of(before: Number, loss: Tensor | float) -> Tensor | float:
    """The loss that stands for a step which was told of ``before`` first: that one where it is not finite; no device is waited for."""
    if before is None:
        return loss
    if not isinstance(before, Tensor) or device_copy.is_on_host(before):
        return loss if math.isfinite(before) else before
    later = loss.to(before.device, non_blocking=True).reshape(before.shape) if isinstance(loss, Tensor) else loss
    return torch.where(before.isfinite(), later, before)


def uneventful(
    step: int, time: float, loss: Number, lr: Number, scale: Number, norm: Number, skipped: Tensor | bool
) -> StepRow | None:
    """The row of a step that was left out, nearly always at hand; None where a number is a tensor or not finite."""
    if isinstance(loss, Tensor) or isinstance(lr, Tensor) or isinstance(scale, Tensor):
        return None
    if isinstance(norm, Tensor) or isinstance(skipped, Tensor):
        return None
    if not math.isfinite(loss or 0.0) or not math.isfinite(norm or 0.0):
        return None
    return StepRow(step, time, loss, lr, scale, norm, skipped)


def _on_the_way(number: Number) -> DeviceCopy | float | None:
    if isinstance(number, Tensor):
        return float(number) if device_copy.is_on_host(number) else DeviceCopy([number])
    return number


def _arrived(number: DeviceCopy | float | None) -> float | None:
    return float(number.result()[0]) if isinstance(number, DeviceCopy) else number
