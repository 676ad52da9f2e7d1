"""Both faces on a model that is given one tensor, and what they say of lost digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gnnstab
from gnnstab.records import Diagnosis, Finding


def asked(model: nn.Module, x: Tensor, precision: str = "fp32") -> Diagnosis:
    return gnnstab.diagnose(model, batch=(x,), loss=lambda out, _: out.square().mean(), precision=precision)


def watched(model: nn.Module, x: Tensor) -> Diagnosis:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
    return monitor.diagnose()


def lost(diagnosis: Diagnosis) -> list[Finding]:
    return [f for f in diagnosis.findings if f.code == "GS504"]
