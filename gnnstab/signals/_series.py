"""Numbers of a run over its steps, for trends and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.records import SIGNALS, LayerFacts, Series, SeriesKey, Signal
from gnnstab.records.vocabulary import GRADIENT_NORM, LOSS, OF_SITE, SCORE_MAX_ABS, in_group
from gnnstab.signals._measures import Streams, judged_modes
from gnnstab.signals._window import Floats, Integers, thin
from gnnstab.signals.fitting import log_linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LIGHT = ("input", "output", "grad_input")
"""Sites whose RMS is drawn; the gradient at the output of a layer is that at the input of the next."""

GROWTH_WINDOW = 200
"""Latest steps over which the growth of the scores is fitted."""


def run_series(
    sites: Mapping[SeriesKey, NDArray[np.void]],
    streams: Streams,
    steps: NDArray[np.void],
    layers: Sequence[LayerFacts],
) -> list[Series]:
    """Every series that a report draws or a trend is fitted to; layers that are no attention are left out."""
    watched = {layer.name for layer in layers if layer.attention}
    found = [*_steps(steps)]
    modes = judged_modes(_modes(sites, watched))
    for key, rows in sites.items():
        if key.layer not in watched or key.call or key.mode != modes.get(key.layer):
            continue
        if key.site == "score":
            size = np.fmax(np.abs(rows["minimum"]), np.abs(rows["maximum"])).astype(np.float64)
            found.append(_series(SCORE_MAX_ABS, key.layer, rows["step"], size))
        elif key.site in _LIGHT:
            found.append(_series(OF_SITE[key.site], key.layer, rows["step"], rows["rms"].astype(np.float64)))
    full = in_group("series")
    for (layer, mode, call, name, head), own in streams.items():
        if name in full and head < 0 and call == 0 and mode == modes.get(layer, mode) and layer in watched:
            values = np.array([row.value for row in own], dtype=np.float64)
            found.append(_series(name, layer, np.array([row.step for row in own], dtype=np.int64), values))
    return found


def growth_signals(series: Sequence[Series]) -> list[Signal]:
    """Relative growth of max |score| per step over the latest steps, with its standard error."""
    signals = []
    for one in series:
        if one.name == SCORE_MAX_ABS:
            fitted = log_linear(one.steps[-GROWTH_WINDOW:], one.values[-GROWTH_WINDOW:])
            if fitted is not None:
                detail = {"standard_error": fitted.error, "steps": int(min(len(one.steps), GROWTH_WINDOW))}
                growth = math.expm1(min(fitted.slope, 50.0))
                signals.append(Signal("score.growth", growth, one.layer, None, int(one.steps[-1]), "training", detail))
    return signals


def _steps(steps: NDArray[np.void]) -> list[Series]:
    rows = steps[~steps["skipped"]]
    found = []
    for name, field in ((LOSS, "loss"), (GRADIENT_NORM, "grad_norm")):
        known = rows[~np.isnan(rows[field])]
        if len(known):
            found.append(_series(name, None, known["step"].astype(np.int64), known[field].astype(np.float64)))
    return found


def _modes(sites: Mapping[SeriesKey, NDArray[np.void]], watched: set[str]) -> dict[str, set[str]]:
    seen: dict[str, set[str]] = {}
    for key in sites:
        if key.layer in watched:
            seen.setdefault(key.layer, set()).add(key.mode)
    return seen


def _series(name: str, layer: str | None, steps: Integers, values: Floats) -> Series:
    at, kept = thin(steps.astype(np.int64), values, lowest=not SIGNALS[name].rises)
    return Series(name, layer, None, at, kept)
