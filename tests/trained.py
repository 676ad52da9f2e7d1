"""Steps of training, and a short run under a monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import gnnstab
from gnnstab.records import Diagnosis


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, monitor: gnnstab.Monitor | None = None) -> None:
    """The backward of a loss and the update that follows, after which the monitor is told."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if monitor is not None:
        monitor.loss(loss)


def trained(
    model: nn.Module,
    batch: Any,
    loss: Callable[[Any, Any], Any],
    steps: int = 8,
    lr: float = 1e-3,
    optimizer: torch.optim.Optimizer | None = None,
    told: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> Diagnosis:
    """What a monitor says of ``steps`` with Adam, of a batch that the model takes whole or, a tuple, as its arguments.

    ``told``: the loss as the monitor is given it; ``options`` go to `Monitor.diagnose`.
    """
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=lr)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", loss=told) as monitor:
        for _ in range(steps):
            output = model(*batch) if isinstance(batch, tuple) else model(batch)
            take_step(optimizer, loss(output, batch), monitor)
    return monitor.diagnose(**options)
