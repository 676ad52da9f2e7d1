"""Whether a run moves any weight at all: the bits of all weights at few steps, compared with those at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gnnstab.probe.optimizer._joined import joined
from gnnstab.records import Measure
from gnnstab.records.vocabulary import OPTIMIZER_STANDING

APART = 4
"""Factor from one update before which the weights are looked at to the next."""

SECOND = 16
"""The second of these updates; the first is the run's first."""

_WHOLE = {4: torch.int32, 8: torch.int64}
"""Bytes of a number → the whole numbers of its size."""


class Standing:
    """Compares the weights before an update, before the next one, and at the end of the run.

    A run that stores the weights of an earlier step at its end has moved between the first two, and is not told.

    Args:
        model: The model inside its wrappers.
        optimizers: All that the run has; weights that none of them holds are not looked at.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._model, self._optimizers = model, optimizers
        own = {id(p) for p in model.parameters()}
        self._moving = {
            id(one) for one in optimizers if any(id(p) in own for group in one.param_groups for p in group["params"])
        }
        """Those that hold a weight of the model: the steps of a discriminator say nothing of its generator."""

        self._calls, self._next = -1, 0
        """Updates that were begun, from 0, and the one before which the weights are looked at next."""

        self._first, self._since = 0, 0
        """The update before which they were looked at last, and the step that it ends."""

        self._bits: Tensor | None = None
        self._moved: Tensor | None = None
        """Whether that update moved anything; on the device of the weights, which nothing waits for."""

        self._gradients: list[Tensor] = []
        """Of those that were there at the second of two looks, whether it was not 0 throughout; on its device likewise."""

        self._rates: list[float] = []
        self._held: list[nn.Parameter] = []

    def look(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Before an update of ``optimizer``, which ends ``step``."""
        if id(optimizer) not in self._moving:
            return
        self._calls += 1
        if self._calls < self._next:
            return
        if self._calls != self._first + 1:
            self._held = self._parameters()
            self._first, self._since, self._bits, self._moved = self._calls, step, bits_of(self._held), None
            self._next = self._calls + 1
            return
        bits = bits_of(self._held)
        self._moved = None if bits is None or self._bits is None else bits != self._bits
        self._next = max(SECOND, APART * self._first)
        given = [p.grad.detach() for p in self._held if p.grad is not None]
        self._held = []  # The run may give them up.
        dense = [g for g in given if _plain(g)]
        self._gradients = [flat.any() for flat, _ in joined(dense)]
        self._gradients += [torch.ones((), dtype=torch.bool)] * (len(given) > len(dense))
        self._rates = [float(g["lr"]) for g in optimizer.param_groups if isinstance(g.get("lr"), (int, float))]

    def at_end(self, step: int) -> list[Measure]:
        """How many updates in a row, up to the end of the run, have left every weight as it was; nothing where one moved."""
        if self._bits is None or self._moved is None or bool(self._moved):
            return []
        now = bits_of(self._parameters())
        if now is None or bool(now != self._bits):
            return []
        rates = [rate for rate in self._rates if math.isfinite(rate)]
        given = None if not self._gradients else any(map(bool, self._gradients))
        detail = {"since": self._since, "given": given, "rate": max(rates, default=None)}
        return [
            Measure(step, "", "", 0, OPTIMIZER_STANDING, -1, float(self._calls + 1 - self._first), json.dumps(detail))
        ]

    def _parameters(self) -> list[nn.Parameter]:
        held = {id(p) for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]}
        return [p for p in self._model.parameters() if p.requires_grad and id(p) in held and not is_lazy(p)]


def bits_of(parameters: Sequence[Tensor]) -> Tensor | None:
    """The sum of the bits of all weights plus 1, as whole numbers that overflow; None without a weight that can be read so.

    What moves a weight by less than the rounding of 1 moves none: a bias of 0 may follow the smallest number.
    """
    held = [parameter.detach() for parameter in parameters]
    if not all(map(_plain, held)):
        return None
    total: Tensor | None = None
    numbers = (torch.view_as_real(t) if t.is_complex() else t for t in held)
    for flat, _ in joined(t for t in numbers if t.numel()):
        shifted = (flat if flat.dtype is torch.float64 else flat.float()) + 1
        one = shifted.view(_WHOLE[shifted.element_size()]).sum(dtype=torch.int64)
        total = one if total is None else total + one.to(total.device)
    return total


def _plain(tensor: Tensor) -> bool:
    """True of numbers at hand in one block; a part of a sharded weight is none."""
    return type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta
