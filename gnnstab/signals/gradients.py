"""Gradients of a trace → signals: RMS per layer, their ratio and slope over depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from gnnstab.records import LayerFacts, SeriesKey, Signal
from gnnstab.records.vocabulary import GRADIENT_INPUT_RMS, GRADIENT_SLOPE, OF_SITE
from gnnstab.signals._window import LATEST_STEPS, latest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sites: TypeAlias = "Mapping[SeriesKey, NDArray[np.void]]"

_SITES = ("grad_input", "grad_output")


def gradient_signals(sites: Sites, layers: Sequence[LayerFacts], source: str, *, single: bool) -> list[Signal]:
    """RMS of ∂L/∂x at every layer, and over the attention layers in order their ratio and slope.

    A layer that is called several times in one forward counts once, with its first call. Steps whose gradients were
    not finite, as those that a GradScaler skips, are left out.
    """
    signals: list[Signal] = []
    for key, rows in sites.items():
        if key.site in _SITES and key.call == 0:
            value = _rms(rows)
            if math.isfinite(value):
                detail = {"mode": key.mode}
                step = None if single else int(rows["step"][-1])
                signals.append(Signal(OF_SITE[key.site], value, key.layer, None, step, source, detail))
    return signals + over_depth(signals, layers, source)


def over_depth(signals: Sequence[Signal], layers: Sequence[LayerFacts], source: str) -> list[Signal]:
    """Ratio and slope of the node-state gradients over the attention layers; nothing below two layers."""
    by_mode: dict[str, dict[str, float]] = {}
    for signal in signals:
        if signal.name == GRADIENT_INPUT_RMS and signal.layer is not None:
            by_mode.setdefault(str(signal.detail.get("mode", "")), {})[signal.layer] = signal.value
    order = [layer.name for layer in sorted(layers, key=lambda layer: layer.position) if layer.attention]
    found: list[Signal] = []
    for mode, rms in by_mode.items():
        points = [(depth, rms[name]) for depth, name in enumerate(order) if name in rms]
        if len(points) < 2 or points[0][0] != 0:
            continue
        # Where the last is zero, as at a branch that begins at zero, growth is told from the last that is not.
        known = [point for point in points if point[1] > 0]
        end = known[-1] if known and points[0][1] > 0 else points[-1]
        detail = {"mode": mode, "first": order[0], "last": order[end[0]], "layers": len(points)}
        # A gradient of exactly zero has underflowed on its way: the ratio is then zero, whatever the last one is.
        if end[0] > 0 and end[1] > 0:
            found.append(Signal("gradient.ratio", points[0][1] / end[1], None, None, None, source, detail))
        positive = [(depth, math.log(value)) for depth, value in known]
        if len(positive) >= 2:
            steepness = float(np.polyfit([d for d, _ in positive], [g for _, g in positive], 1)[0])
            found.append(Signal(GRADIENT_SLOPE, -steepness, None, None, None, source, detail))
    return found


def _rms(rows: NDArray[np.void]) -> float:
    values = np.where(rows["non_finite"] == 0, rows["rms"], np.nan).astype(np.float64)
    return latest(values, LATEST_STEPS)
