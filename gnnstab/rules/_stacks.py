"""What a few steps on two copies showed of a deep stack, as a finding of the rule whose cause it is."""

from __future__ import annotations

from collections.abc import Iterator

from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import OPTIMIZER_BY_HEART, OPTIMIZER_UNDONE
from gnnstab.rules.base import Rule


def hindered(rule: Rule, signals: Signals, limit: float, advice: str) -> Iterator[Finding]:
    """One finding per stack of the rule's cause that takes more than ``limit`` of the progress away; a setting is none."""
    for signal in signals.find(OPTIMIZER_UNDONE):
        told = signal.detail
        if told.get("cause") == rule.cause and not told.get("setting") and signal.value > limit:
            names = signal.detail.get("names") or [""]
            yield rule.finding(
                f"{said(signal)} {advice}", severity="warning", limit=limit, signal=signal, layer=str(names[0])
            )


def said(signal: Signal) -> str:
    """What is suspected, how far the model learns with it, and how far without."""
    told = signal.detail
    first, best, undone = (float(told.get(key, 0.0)) for key in ("first", "best", "undone"))
    rate, zeros = told.get("at_any_rate"), told.get("zeros")
    # A loss that begins far off may fall far, and the model knows less than nothing.
    beside = f", where an output of zeros has {zeros:.3g}" if isinstance(zeros, float) and zeros < best else ""
    any_rate = (
        f", and to {rate:.3g} at the best of {told.get('rates', 'a tenth, a third, three and ten')} times your rate"
        if isinstance(rate, float)
        else ""
    )
    return (
        f"{told.get('suspect')}, and the model hardly learns: your optimizer's steps on a copy bring the loss of one batch from {first:.3g} to "
        f"{best:.3g}{beside}{any_rate}. {str(told.get('words', ''))[:1].upper()}{str(told.get('words', ''))[1:]} on a copy, {told.get('steps')} steps bring it to "
        f"{undone:.3g}: it takes {100 * signal.value:.0f} % of the progress."
    )


def said_of_half(signal: Signal) -> str:
    """The same of steps that were taken for half of the rows."""
    told = signal.detail
    first, best = (float(told.get(key, 0.0)) for key in ("first", "best"))
    words, suspect = str(told.get("words", "")), told.get("suspect")
    took = f"your optimizer's steps on a copy, {told.get('steps')} of them for half of the rows that the loss reads,"
    rates = "at the best of your rate, a third of it, three and ten times it"
    if signal.name == OPTIMIZER_BY_HEART:
        learned = float(told.get("by_heart", 0.0))
        return (
            f"{suspect}, and what the model learns holds for no other row: {took} bring the loss of all rows from {first:.3g} to {best:.3g} "
            f"{rates}, and for all rows to {learned:.3g}: it learns them by heart."
        )
    return (
        f"{suspect}: {took} bring the loss of all rows from {first:.3g} to {best:.3g} {rates}. {words[:1].upper()}{words[1:]} on a copy, they bring it to "
        f"{float(told.get('undone', 0.0)):.3g}: it takes {100 * signal.value:.0f} % of the progress."
    )
