"""A short training under a monitor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import gnnstab
from gnnstab.records import Diagnosis


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
            optimizer.zero_grad()
            value = loss(model(*batch) if isinstance(batch, tuple) else model(batch), batch)
            value.backward()
            optimizer.step()
            monitor.loss(value)
    return monitor.diagnose(**options)
