"""Full-tier numbers of a trace → signals: per stream the median of its latest finite values, of one mode per layer."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from gnnstab.records import SIGNALS, Measure, Signal
from gnnstab.records.vocabulary import DEGREE_MEDIAN, FEATURE_NON_FINITE, OPTIMIZER_LOSS_RISE, OPTIMIZER_UNDONE
from gnnstab.signals._window import best_mode, latest

T = TypeVar("T", list[Any], dict[str, Any])

Stream = tuple[str, str, int, str, int]
"""layer, mode, call, name, head"""


Streams = Mapping[Stream, Sequence[Measure]]


def streams(measures: Sequence[Measure]) -> Streams:
    """Measures by stream, each in order of steps; names outside the vocabulary are left out."""
    apart: dict[Stream, list[Measure]] = defaultdict(list)
    for row in measures:
        apart[row[1:6]].append(row)
    found: dict[Stream, list[Measure]] = {}
    for (layer, mode, call, name, head), rows in apart.items():
        name = _FORMER.get(name, name)
        if name in SIGNALS:
            found.setdefault((layer, mode, call, name, head), []).extend(rows)
    return found


_FORMER = {"optimizer.stack_share": OPTIMIZER_UNDONE}
"""Names that older traces hold for signals of today."""


def judged_modes(layers: Mapping[str, set[str]]) -> dict[str, str]:
    """Layer → the mode that is judged.

    The mode that most layers share is taken where a layer ran in it, so that neighbours are compared alike.
    """
    if not layers:
        return {}
    common = best_mode(mode for modes in layers.values() for mode in modes)
    return {layer: common if common in modes else best_mode(modes) for layer, modes in layers.items() if modes}


def measured_signals(found: Streams, source: str, *, single: bool) -> tuple[list[Signal], dict[str, str]]:
    """Signals of the full tier, and why some names have none.

    ``single``: the trace holds one forward of a batch, not a run; its signals carry no step.
    """
    seen: dict[str, set[str]] = {}
    for layer, mode, *_ in found:
        if mode:  # What is of no forward has none.
            seen.setdefault(layer, set()).add(mode)
    modes = judged_modes(seen)
    degrees = {k[0]: {row.step: row.value for row in rows} for k, rows in found.items() if k[3] == DEGREE_MEDIAN}
    signals: list[Signal] = []
    undefined: dict[str, str] = {}
    for (layer, mode, call, name, head), rows in found.items():
        if mode and mode != modes[layer]:
            continue
        detail: dict[str, Any] = {"mode": mode} if mode else {}
        if mode and len(seen[layer]) > 1:
            detail["other_modes"] = sorted(seen[layer] - {mode})
        if call:
            detail["call"] = call
        for part, extra in _parts(rows, source, degrees.get(layer, {})):
            values = np.array([row.value for row in part], dtype=np.float64)
            finite = values[np.isfinite(values)]
            # A run of few measurements ends in its later half: what began soft and became sharp is sharp.
            value = latest(finite if single else finite[len(finite) // 2 :])
            # A loss that rises beyond every number is measured, and with it the rate at which it does not.
            if name == OPTIMIZER_LOSS_RISE and np.isinf(values).all():
                value = np.inf
            # Of several batches one is enough.
            if name == FEATURE_NON_FINITE and len(finite):
                value = finite.max()
            if np.isnan(value):
                undefined[name] = _why_undefined(part[-1].value, name)
                continue
            told = {**parsed(next((row.detail for row in reversed(part) if row.detail), ""), dict), **detail, **extra}
            step = None if single else part[-1].step
            signals.append(Signal(name, value, layer or None, None if head < 0 else head, step, source, told))
    defined = {signal.name for signal in signals}
    return signals, {name: why for name, why in undefined.items() if name not in defined}


def _parts(
    rows: Sequence[Measure], source: str, degrees: Mapping[int, float]
) -> list[tuple[Sequence[Measure], dict[str, Any]]]:
    """All rows together; of generated graphs each by itself, since every step is another in-degree."""
    if source != "synthetic":
        return [(rows, {})]
    return [([row], {"in_degree": degrees.get(row.step, float("nan"))}) for row in rows]


def _why_undefined(value: float, name: str) -> str:
    if np.isinf(value):
        return f"{name} was infinite in every measurement"
    return f"{name} is not defined on this data (no node, edge or channel that it could be taken over, or only NaN)"


def parsed(text: str, kind: type[T]) -> T:
    """JSON of a trace; an empty ``kind`` for anything else, since a trace may come from a stranger."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return kind()
    return found if isinstance(found, kind) else kind()
