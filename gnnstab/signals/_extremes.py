"""What a run went through beside what it came to: the worst and the last value of a number, with their steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnnstab.characters import counted
from gnnstab.records import SIGNALS, Measure, Signal
from gnnstab.records.vocabulary import OF_SITE
from gnnstab.signals._measures import Streams
from gnnstab.trace import Trace

FULL_EVERY = 50
"""Steps between two full measurements of a monitor's default schedule."""

Place = tuple[str | None, str, str, int]
"""layer, mode, signal, head"""


def with_extremes(trace: Trace, full: Streams, values: Iterable[Signal]) -> list[Signal]:
    """The same values; those of a recorded run carry ``worst``, ``worst_step``, ``last``, ``last_step`` and ``measurements``.

    Where the light tier records a number as well, ``worst`` is taken over every recorded step. Where the trace has pooled
    those since, ``worst_span`` says over how many from ``worst_step`` on; an RMS is then that of all of them together.
    """
    known = _of_measures(full)
    for place, own in _of_sites(trace).items():
        before = known.get(place, {})
        if not before or own["worst"] > before["worst"]:
            known[place] = {**before, **own}
    return [_told(signal, known) for signal in values]


def _told(signal: Signal, known: Mapping[Place, Mapping[str, Any]]) -> Signal:
    head = -1 if signal.head is None else signal.head
    found = known.get((signal.layer, str(signal.detail.get("mode", "")), signal.name, head))
    if found is None or signal.source != "training" or signal.detail.get("call") or signal.detail.get("parameter"):
        return signal
    return dataclasses.replace(signal, detail={**signal.detail, **found})


def _of_measures(full: Streams) -> dict[Place, dict[str, Any]]:
    return {
        (layer or None, mode, name, head): _summary(name, rows)
        for (layer, mode, call, name, head), rows in full.items()
        if call == 0 and any(math.isfinite(row.value) for row in rows)
    }


def _summary(name: str, rows: Sequence[Measure]) -> dict[str, Any]:
    finite = [row for row in rows if math.isfinite(row.value)]
    side = 1 if SIGNALS[name].rises else -1
    worst, last = max(finite, key=lambda row: side * row.value), finite[-1]
    return {
        "worst": worst.value,
        "worst_step": worst.step,
        "last": last.value,
        "last_step": last.step,
        "measurements": len({row.step for row in rows}),
    }


def _of_sites(trace: Trace) -> dict[Place, dict[str, Any]]:
    found: dict[Place, dict[str, Any]] = {}
    for measure in ("size", "rms"):
        for key, peak in trace.peaks(measure).items():
            name = OF_SITE.get(key.site)
            if name is None or key.call or (key.site == "score") != (measure == "size"):
                continue
            own: dict[str, Any] = {"worst": peak.value, "worst_step": peak.step}
            found[key.layer, key.mode, name, -1] = own | ({"worst_span": peak.span} if peak.span > 1 else {})
    return found


def short_run(steps: int, measures: Sequence[Measure]) -> list[str]:
    """For a run shorter than the usual distance of two full measurements: how many it had, as an assumption."""
    if not 0 < steps < FULL_EVERY:
        return []
    full = full_steps(measures)
    many = counted(full, "full measurement")
    return [
        f"the run: {steps} recorded steps with {many} of attention; pass schedule=5 to the Monitor for more of them"
    ]


def full_steps(measures: Sequence[Measure]) -> int:
    """How many steps had a full measurement of attention or activations."""
    return len({row.step for row in measures if row.layer})
