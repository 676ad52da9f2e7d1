"""Signals → `Diagnosis`: the rules, the causes they point to, the fixes, the advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gnnstab.fixes import recommend
from gnnstab.records import Coverage, Diagnosis, Event, Signals, Target
from gnnstab.rules import advice, causes, modest, run
from gnnstab.rules.queries import left_out, seen_at_the_end
from gnnstab.signals import from_trace
from gnnstab.trace import Trace
from gnnstab.verification.interventions import recalled


def diagnose_trace(
    trace: Trace, *, target: Target | None = None, late: Sequence[Event] = (), **options: Any
) -> Diagnosis:
    """Diagnose an open trace; ``options`` as for `evaluate`, ``late`` are events that came when nothing was recorded any longer."""
    signals = from_trace(trace)
    if late:
        signals = replace(signals, events=(*signals.events, *late))
    return evaluate(target or Target(kind="trace", path=str(trace.path or "in memory")), signals, **options)


def evaluate(
    target: Target,
    signals: Signals,
    *,
    select: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    overrides: Sequence[Any] = (),
) -> Diagnosis:
    """Run the rules on signals and put everything that a report needs into a `Diagnosis`."""
    outcome = run(signals, select=select or (), ignore=ignore or (), thresholds=thresholds, overrides=overrides)
    found = causes(outcome.findings, outcome.statuses, signals)
    findings = modest(outcome.findings, found)
    diagnosis = Diagnosis(
        target=target,
        coverage=_coverage(signals),
        causes=recommend(found, findings, signals),
        findings=findings,
        rules=outcome.statuses,
        advice=advice(findings, signals),
        layers=signals.layers,
        signals=signals.values,
        series=signals.series,
        events=signals.events,
        context=signals.context,
    )
    return recalled(diagnosis, signals)


def _coverage(signals: Signals) -> Coverage:
    blind_layers = {b.layer for b in signals.blind if b.site in ("score", "output", "*")} - seen_at_the_end(signals)
    observed = [layer for layer in signals.attention_layers if layer.name not in blind_layers]
    return Coverage(
        layers_expected=max(int(signals.context.get("layers_expected", 0)), len(signals.attention_layers))
        - len(left_out(signals)),
        layers_observed=len(observed),
        blind=signals.blind,
        assumptions=tuple(signals.context.get("assumptions", ())),
    )
