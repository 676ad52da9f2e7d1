"""A diagnosis whose causes have been undone one by one."""

from __future__ import annotations

from typing import Any

from torch import nn

from gnnstab.observation import static_signals
from gnnstab.randomness import keeps_random_state, same_random_state
from gnnstab.records import Diagnosis, Signals
from gnnstab.records.vocabulary import GAIN_VALUE
from gnnstab.signals import join
from gnnstab.verification.interventions._applying import decided
from gnnstab.verification.interventions._investigation import Investigation
from gnnstab.verification.interventions._trying import investigate

_OF_WEIGHTS = GAIN_VALUE
"""A signal that the weights alone give."""


@keeps_random_state
def undo(diagnosis: Diagnosis, model: nn.Module, *, batch: Any, loss: Any = None, precision: str = "fp32") -> Diagnosis:
    """The diagnosis with root, contributing and explained-by from what undoing each suspect on a copy has shown.

    Args:
        diagnosis: Of this model, or of the run that ended with it.
        model: Any module; it stays as it is, as do its gradients and every random generator.
        batch: As for `gnnstab.diagnose`; the first of several is used.
        loss: ``callable(output, batch) -> scalar``; a fixed random linear read-out of the output when omitted.
        precision: ``fp32``, ``fp16`` or ``bf16``: the forward runs under autocast to it.

    Where no finding is a symptom that one forward and backward can show, the diagnosis comes back as it is.
    """
    signals = _with_weights(diagnosis, model)
    return decided(diagnosis, investigate(diagnosis.findings, signals, model, batch, loss, precision), signals)


def investigated(diagnosis: Diagnosis, model: nn.Module, *, batch: Any, loss: Any, precision: str) -> Investigation:
    """What undoing each suspect shows, for a trace to keep; arguments as of `undo`."""
    with same_random_state():
        signals = _with_weights(diagnosis, model)
        return investigate(diagnosis.findings, signals, model, batch, loss, precision)


def _with_weights(diagnosis: Diagnosis, model: nn.Module) -> Signals:
    signals = Signals(
        diagnosis.target.kind, diagnosis.layers, diagnosis.signals, diagnosis.series, diagnosis.events,
        context=diagnosis.context,
    )  # fmt: skip
    if any(finding.severity != "info" for finding in diagnosis.findings) and not signals.find(_OF_WEIGHTS):
        # A trace holds no weights; here they are.
        return join(signals, static_signals(model))
    return signals
