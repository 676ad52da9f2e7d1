"""Optimizer state → numbers per parameter.

Adam's second moment v, divided by its bias correction 1 − β₂^t, is a running mean of the squared gradient over some
1/(1 − β₂) steps: its root mean is the RMS gradient. It saw clipped gradients, and with Adam's own ``weight_decay`` (not
AdamW's) the decay term as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from gnnstab.checkpoint._optimizer import SECOND_MOMENTS, Entry, OptimizerState
from gnnstab.checkpoint._scan import Statistics, entries, finite
from gnnstab.checkpoint._tensors import readable
from gnnstab.layers import plays
from gnnstab.records import Signal
from gnnstab.records.settings import MOST_MOMENTUM
from gnnstab.records.vocabulary import (
    OPTIMIZER_LR_TO_RMS,
    OPTIMIZER_MOMENTUM,
    OPTIMIZER_NEGATIVE_RATE,
    OPTIMIZER_NEVER_UPDATED,
)

WIDEST = 5 / 3
"""Gain RMS·√fan_in of the widest initialisation in use."""

MOST_NAMES = 50
"""Parameter names listed with one number."""


def optimizer_signals(
    optimizer: OptimizerState,
    names: Mapping[int, str],
    owners: Mapping[str, str],
    statistics: Mapping[str, Statistics],
) -> list[Signal]:
    """Numbers of one optimizer.

    ``names`` ties the index of an entry to its parameter (see `matching_names`), ``owners`` a parameter to its
    attention layer (other parameters: the module that holds them), ``statistics`` a parameter to its own statistics.
    """
    signals: list[Signal] = []
    silent: list[str] = []
    for index, name in names.items():
        entry = optimizer.entries[index]
        layer = owners.get(name, name.rpartition(".")[0])
        if _never_updated(entry, optimizer):
            silent.append(name)
            continue
        signals += _entry_signals(entry, name, layer, statistics[name], optimizer.path)
    if optimizer.adaptive and names:
        detail = {"parameters": silent[:MOST_NAMES], "optimizer": optimizer.path, "of": len(names)}
        signals.append(Signal(OPTIMIZER_NEVER_UPDATED, float(len(silent)), None, source="optimizer", detail=detail))
    return signals


def settings_beyond(optimizer: OptimizerState) -> list[Signal]:
    """A rate below 0 and a momentum of 1 or more, of every group."""
    found: dict[tuple[str, int], Signal] = {}
    for entry in optimizer.entries:
        lr, momentum = (entry.settings.get(name) for name in ("lr", "momentum"))
        detail = {"group": entry.group, "optimizer": optimizer.path}
        if lr is not None and lr < 0:
            found[OPTIMIZER_NEGATIVE_RATE, entry.group] = Signal(
                OPTIMIZER_NEGATIVE_RATE, lr, source="optimizer", detail=detail
            )
        if momentum is not None and momentum >= MOST_MOMENTUM:
            found[OPTIMIZER_MOMENTUM, entry.group] = Signal(
                OPTIMIZER_MOMENTUM, momentum, source="optimizer", detail=detail
            )
    return list(found.values())


def gradient_slope(signals: Sequence[Signal], layers: Sequence[str]) -> list[Signal]:
    """Slope of ln(RMS gradient of the value weights) over the layers, backwards; needs three layers.

    The query and key weights are left out: their gradients follow the uniformity of the attention, not depth.
    """
    by_layer = {
        s.layer: s.value
        for s in signals
        if s.name == "optimizer.gradient_rms" and plays(str(s.detail.get("parameter", "")), "value") and s.value > 0
    }
    points = [(position, math.log(by_layer[name])) for position, name in enumerate(layers) if name in by_layer]
    if len(points) < 3:
        return []
    slope = float(np.polyfit([p for p, _ in points], [g for _, g in points], 1)[0])
    detail = {"from": "second moments of the value weights", "layers": len(points)}
    return [Signal("gradient.slope", -slope, None, source="optimizer", detail=detail)]


def _entry_signals(entry: Entry, name: str, layer: str, weight: Statistics, path: str) -> list[Signal]:
    lr, eps = entry.settings.get("lr"), entry.settings.get("eps")
    detail = {"parameter": name, "optimizer": path, "lr": lr, "eps": eps, "step": entry.step}
    signals = []
    moment = _second_moment(entry, "exp_avg_sq", "square_avg")
    if moment is not None:
        mean = _mean(moment, lambda squares: squares)
        rms = math.sqrt(mean) if mean >= 0 else math.nan
        signals.append(Signal("optimizer.gradient_rms", rms, layer, source="optimizer", detail=detail))
        damping = _second_moment(entry, *SECOND_MOMENTS)
        if eps is not None and damping is not None:
            share = _mean(damping, lambda squares: (squares.sqrt() < eps).double())
            signals.append(Signal("optimizer.below_eps_share", share, layer, source="optimizer", detail=detail))
    # The relative size of a first step is lr over RMS only where the step is normalised by the gradient's own size.
    if moment is not None and lr is not None and weight.rms > 0:
        shape = entry.shape or ()
        if len(shape) == 2:
            detail = {**detail, "of drawn": float(lr) * math.sqrt(shape[1]) / WIDEST}
        signals.append(Signal(OPTIMIZER_LR_TO_RMS, float(lr) / weight.rms, layer, source="optimizer", detail=detail))
    return signals


def _second_moment(entry: Entry, *names: str) -> tuple[Tensor, float] | None:
    """The first of the named second moments, and what frees it of its start at zero; None when not finite or absent."""
    for name in names:
        tensor = entry.tensors.get(name)
        if tensor is None or not readable(tensor) or tensor.numel() == 0:
            continue
        betas = entry.settings.get("betas")
        decay = betas[1] if isinstance(betas, (list, tuple)) and len(betas) == 2 else None
        decay = entry.settings.get("alpha") if name == "square_avg" else decay  # RMSprop's alpha, Adam's β₂
        if not isinstance(decay, (int, float)) or not 0 <= decay < 1 or not entry.step or entry.step <= 0:
            return None
        return (tensor, 1 - decay**entry.step) if finite(tensor) else None
    return None


def _mean(moment: tuple[Tensor, float], of: Callable[[Tensor], Tensor]) -> float:
    """Mean over all entries of what ``of`` makes of them once they are corrected, in float64."""
    total, count = 0.0, 0
    for part in entries(moment[0]):
        total, count = total + float(of(part / moment[1]).sum()), count + part.numel()
    return total / count


def _never_updated(entry: Entry, optimizer: OptimizerState) -> bool:
    """True without any state while the optimizer keeps state, or with a second moment of exactly zero."""
    if not optimizer.adaptive:
        return False
    if not entry.tensors:
        return True
    moments = [t for name, t in entry.tensors.items() if name in SECOND_MOMENTS and readable(t)]
    return bool(moments) and all(not bool(t.any()) for t in moments)
