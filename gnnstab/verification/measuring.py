"""An arm of a comparison: its signals, the findings that the rules make of them, and the batches it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch_geometric.data.data import BaseData

from gnnstab.observation import model_signals
from gnnstab.records import Finding, Signals
from gnnstab.rules import run
from gnnstab.verification._objective import trained_on


@dataclass(frozen=True)
class Observation:
    """Signals of one arm and the findings that the rules make of them."""

    signals: Signals
    findings: tuple[Finding, ...]
    """At warning or above."""

    notes: tuple[Finding, ...] = ()
    """Information."""


def observe(
    model: nn.Module, batch: Any, *, loss: Any = None, precision: str = "fp32", **optimizing: Any
) -> Observation:
    """Forward and backward through the recorder, then signals and rules; the model is left as it was.

    ``optimizing``: ``optimizer``, ``try_steps`` and ``search`` as of `model_signals`.
    """
    return judged(model_signals(model, batch, loss=loss, precision=precision, **optimizing))


def judged(signals: Signals) -> Observation:
    """Signals with the findings that they give."""
    findings = run(signals).findings
    loud = tuple(f for f in findings if f.severity != "info")
    return Observation(signals, loud, tuple(f for f in findings if f.severity == "info"))


def measured_on(batch: Any, loss: Any) -> Any:
    """The batches that an arm is measured on: those that it trains on, without those that are kept to judge it by."""
    several = items(batch)
    if loss is None or len(several) < 2:
        return batch
    trained = several[: trained_on(len(several))]
    return trained[0] if len(trained) == 1 else trained


def items(batch: Any) -> Sequence[Any]:
    """The single batches of what the caller gave as batch; the same cut as `gnnstab.probe.batches.arguments.as_arguments`."""
    if isinstance(batch, (BaseData, torch.Tensor, dict, tuple)):
        return [batch]
    return [single for item in batch for single in items(item)]
