"""The whole signal vector of a model: the same probe, signals and rules that a diagnosis uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch_geometric.data.data import BaseData

from gnnstab.records import Finding, Signals
from gnnstab.rules import run
from gnnstab.verification.objective import trained_on


@dataclass(frozen=True)
class Observation:
    """Signals of one arm and the findings that the rules make of them."""

    signals: Signals
    findings: tuple[Finding, ...]
    """At warning or above."""


def observe(
    model: nn.Module, batch: Any, *, loss: Any = None, precision: str = "fp32", optimizer: Any = None
) -> Observation:
    """Forward and backward through the recorder, then signals and rules; the model is left as it was."""
    from gnnstab.checkpoint import recover_model
    from gnnstab.signals import from_checkpoint, join

    static = from_checkpoint(recover_model(model, optimizer=optimizer))
    return judged(join(measured_signals(model, batch, loss=loss, precision=precision), static))


def measured_signals(model: nn.Module, batch: Any, *, loss: Any = None, precision: str = "fp32") -> Signals:
    """What the recorder sees in one forward and backward of every batch, without what the weights alone say."""
    from gnnstab.probe.measure import measure
    from gnnstab.signals import from_trace

    with measure(model, batch, loss=loss, precision=precision) as trace:
        return from_trace(trace)


def judged(signals: Signals) -> Observation:
    """Signals with the findings that they give."""
    findings = run(signals).findings
    return Observation(signals, tuple(f for f in findings if f.severity != "info"))


def measured_on(batch: Any, loss: Any) -> Any:
    """The batches that an arm is measured on: those that it trains on, without those that are kept to judge it by."""
    several = items(batch)
    if loss is None or len(several) < 2:
        return batch
    trained = several[: trained_on(len(several))]
    return trained[0] if len(trained) == 1 else trained


def items(batch: Any) -> Sequence[Any]:
    """The single batches of what the caller gave as batch; the same cut as `gnnstab.probe.batches.as_arguments`."""
    if isinstance(batch, (BaseData, torch.Tensor, dict, tuple)):
        return [batch]
    return [single for item in batch for single in items(item)]
