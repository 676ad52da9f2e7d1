"""What a run went through: the worst value of a number beside the one that stands for its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gnnstab.records import SIGNALS, Diagnosis, Signal
from gnnstab.records.vocabulary import SignalKind
from gnnstab.report import summary
from gnnstab.report.escape import name
from gnnstab.report.numbers import number
from gnnstab.rules.limits import value_of

NOTABLE = 4.0
"""A worst value counts from so many times the value that stands for the end of the run, as danger counts."""

NEAR = 0.5
"""Of the limit of a share, such as that of closed channels, from which on the worst value is near it; one of three channels is none of the run's story."""

BEGINNING = 10
"""Steps within which a run may have numbers that heal by themselves; what came later is a burst, and told."""

SHOWN = 6


def worst_words(signal: Signal) -> str:
    """``worst 1.5e7 at step 12, last 1.3 at step 149``; empty for a number without a run.

    The worst is known of every recorded step, the last may be that of a full measurement long before it.
    """
    told = []
    for which in ("worst", "last"):
        value, step = signal.detail.get(which), signal.detail.get(f"{which}_step")
        if isinstance(value, (int, float)) and isinstance(step, int):
            span = signal.detail.get("worst_span") if which == "worst" else None
            place = f"steps {step} to {step + span - 1}" if isinstance(span, int) else f"step {step}"
            word = (
                "last full measurement" if which == "last" and step < signal.detail.get("worst_step", step) else which
            )
            told.append(f"{word} {number(float(value))} at {place}")
    return ", ".join(told)


def extremes(diagnosis: Diagnosis, *, healed: bool = True) -> list[str]:
    """A sentence for every number that was far worse during the run than at its end, the furthest first.

    Without ``healed`` those of the first steps are left out whose value at the end is too small to matter, as the kind of the signal says.
    """
    found: list[tuple[float, str]] = []
    for signal in diagnosis.signals:
        value, kind = signal.detail.get("worst"), SIGNALS[signal.name]
        if signal.head is not None or not isinstance(value, (int, float)) or not math.isfinite(signal.value):
            continue
        if signal.detail.get("worst_step") == signal.detail.get("last_step", -1):
            continue  # The run ended on it: the event tells that better.
        growth = kind.growth(signal.value, float(value))
        step = signal.detail.get("worst_step")
        early = isinstance(step, int) and step < BEGINNING and not kind.counts(signal.value)
        if growth >= NOTABLE and kind.counts(float(value)) and _near(kind, float(value)) and (healed or not early):
            words = f"{signal.name}{f' of {name(signal.layer)}' if signal.layer else ''}: {worst_words(signal)}"
            if signal.value != signal.detail.get("last"):
                words += f"; {number(signal.value)} is the median of the last measurements"
            found.append((growth, words))
    found.sort(key=lambda item: -item[0])
    more = len(found) - SHOWN
    return [words for _, words in found[:SHOWN]] + ([f"and {more} more"] if more > 0 else [])


def _near(kind: SignalKind, value: float) -> bool:
    """False of a share that was never near a limit that a rule holds it against."""
    limits = [value_of(limit) for limit in kind.limits] if kind.is_share and kind.rises else []
    return not limits or value >= NEAR * min(limits)


def before_it_broke(diagnosis: Diagnosis, used: Sequence[str]) -> str:
    """Which step the numbers of these signals are of, where a value was not finite after it: they look healthy beside the verdict."""
    # A number that is not finite is none of those that are shown.
    steps = [
        int(s.detail.get("last_step", s.step)) for s in diagnosis.signals
        if s.name in used and s.layer is not None and s.step is not None and "measurements" in s.detail
    ]  # fmt: skip
    broke = summary.first_non_finite(diagnosis)
    if broke is None or not steps or max(steps) >= broke.step:
        return ""
    return f"Of step {max(steps)}, the last full measurement before the run broke at step {broke.step}."
