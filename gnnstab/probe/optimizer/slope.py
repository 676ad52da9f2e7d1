"""Whether updates overshoot: the slope along an update before and after it, from the gradients of the run itself."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gnnstab.probe.buffering.step_writer import Writer
from gnnstab.probe.optimizer._settings import beyond_limits, highest_usual, usual_rate
from gnnstab.records import Measure
from gnnstab.records.rises import Overshoot
from gnnstab.records.settings import Setting
from gnnstab.records.vocabulary import OPTIMIZER_OVERSHOOT

RISING = 1.3
"""Rise of the rate within `LATELY` steps from which on updates are watched: a constant or falling rate costs nothing."""

LATELY = 10

BEGINNING = 50
"""Steps that are not watched: from here on no linear warm-up, however long, rises by `RISING` within `LATELY` steps."""

RISING_SGD = 1.1
"""The same under SGD, from step `LATELY` on: nothing there adapts to the curvature, and healthy warm-ups do not overshoot."""


class SlopeWatch:
    """While the learning rate rises, measures 1 − (slope after)/(slope before) along every update, and hands it to the trace.

    That is the rate times the curvature along the update: 1 where an update ends at the bottom of a parabola, 2 where it ends as
    high on the other side. The slope after it is taken from the next step's gradients, so that no loss is called; batches that
    differ pull the number towards 1. Two copies of the parameters are kept meanwhile.

    Args:
        optimizers: All that move the model; several are not watched.
        writer: Gets the measures.
        now: The step that is about to end.
    """

    def __init__(self, optimizers: Any, writer: Writer, now: Callable[[], int]) -> None:
        self.latest = Overshoot()
        """The last update that was measured; see `_look` for what counts by itself."""

        self.settings: list[Setting] = []
        """Those that have come to stand beyond their limits, each once; whoever reads them clears them."""

        self._beyond: set[str] = set()
        """Signals of those that were told."""

        self._last: tuple[Any, Any, Any] | None = None
        """Rate, momentum and decay of the first group at the last update."""

        self.usual = usual_rate(optimizers[0]) if len(optimizers) == 1 else 0.0
        """Default rate of an optimizer whose updates have the size of the rate; 0 for none."""

        self.highest = highest_usual(optimizers[0]) if len(optimizers) == 1 else 0.0
        """Highest rate that is usual for the one optimizer; 0 where none is known."""

        self._watched = len(optimizers) == 1 and not isinstance(optimizers[0], torch.optim.LBFGS)
        self._writer = writer
        self._now = now
        self._rates: deque[tuple[int, float]] = deque(maxlen=LATELY + 1)
        self._highest = 0.0
        """Largest rate before the window: a schedule that restarts and comes back to it has trained there before."""

        self._constant = 0
        """Updates in a row at the rate of the last one; from `LATELY` on nothing can rise within the window."""

        self._before: tuple[Overshoot, list[Tensor], list[Tensor], list[Tensor]] | None = None
        self._sent: tuple[Overshoot, Tensor, Any] | None = None

    def look(self, optimizer: torch.optim.Optimizer) -> None:
        """Before an update: finish what the last one began, and begin anew while the rate rises."""
        group = optimizer.param_groups[0]
        lr, step = group.get("lr"), self._now()
        if isinstance(lr, Tensor):  # Its number may lie on a device, and nothing waits for that.
            return
        settings = lr, group.get("momentum"), group.get("weight_decay")
        # Other groups follow the first one, or are looked at now and then.
        if step % LATELY == 0 or settings != self._last:
            self._last = settings
            self._judge(optimizer, step)
        calm = self._constant > LATELY and self._before is None and self._sent is None
        if calm and lr == self._rates[-1][1]:
            # As most steps are: all rates of the window are this one.
            self._rates.append((step, lr))
            return
        if not self._watched or lr is None or getattr(optimizer, "grad_scale", None) is not None:
            return
        self._constant = self._constant + 1 if self._rates and self._rates[-1][1] == lr else 0
        if len(self._rates) > LATELY:
            self._highest = max(self._highest, self._rates[0][1])
        self._rates.append((step, lr))
        if self._constant <= LATELY or self._before is not None or self._sent is not None:
            with torch.no_grad():
                self._look(optimizer, lr, step)

    def _judge(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for one in beyond_limits(optimizer):
            if one.signal not in self._beyond:
                self._beyond.add(one.signal)
                self.settings.append(one)
                detail = json.dumps({"group": one.group})
                self._writer.measures([Measure(step, "", "train", 0, one.signal, -1, one.value, detail)])

    def _look(self, optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
        self._land()
        before, self._before = self._before, None
        if before is not None and before[0].step == step - 1:
            self._send(*before)
            self._land()
        lowest = min(rate for _, rate in self._rates)
        # What SGD overshoots while its rate rises faster than any warm-up is lost. Else batches that differ may say as much of a run
        # that learns, since adaptive optimizers train at the edge, and the loss has the last word.
        sgd, fast = isinstance(optimizer, torch.optim.SGD), step >= BEGINNING and lr >= RISING * lowest
        watched = fast or (sgd and step >= LATELY and lr >= RISING_SGD * lowest)
        if watched and lr > self._highest and step - self._rates[0][0] <= LATELY:
            moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._before = (
                Overshoot(step, math.nan, sgd and fast, not sgd),
                moved,
                [p.detach().clone() for p in moved],
                [_grad(p).clone() for p in moved],
            )

    def _send(
        self, update: Overshoot, parameters: list[Tensor], weights: list[Tensor], gradients: list[Tensor]
    ) -> None:
        if any(p.grad is None for p in parameters):
            return
        slopes = torch.zeros(2, dtype=torch.float64, device=parameters[0].device)
        for parameter, weight, gradient in zip(parameters, weights, gradients, strict=True):
            change = (parameter - weight).flatten().double()
            pair = torch.stack([gradient.flatten().double() @ change, _grad(parameter).flatten().double() @ change])
            slopes += pair.to(slopes.device)
        if slopes.device.type != "cuda":
            self._sent = (update, slopes, None)
            return
        # Nothing waits for a device: the numbers are read when they have arrived.
        host = torch.empty(2, dtype=torch.float64, pin_memory=True)
        host.copy_(slopes, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._sent = (update, host, arrived)

    def _land(self) -> None:
        if self._sent is None or (self._sent[2] is not None and not self._sent[2].query()):
            return
        (update, slopes, _), self._sent = self._sent, None
        before, after = slopes.tolist()
        # Momentum may carry an update uphill: then the two slopes say nothing of an overshoot.
        if before < 0 and math.isfinite(after):
            self.latest = update._replace(value=1 - after / before)
            step, value, alone, adaptive = self.latest
            detail = json.dumps({"alone": alone, "adaptive": adaptive})
            self._writer.measures([Measure(step, "", "train", 0, OPTIMIZER_OVERSHOOT, -1, value, detail)])


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.detach()
