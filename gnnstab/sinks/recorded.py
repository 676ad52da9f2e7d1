"""A recorded run streamed to sinks, as if it ran now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gnnstab.evaluation import diagnose_trace
from gnnstab.feed import Extremes, Feed, Sink, step_values
from gnnstab.records import Diagnosis, SeriesKey
from gnnstab.report.escape import name as short_name
from gnnstab.trace import Trace


def replay(trace: Trace, sinks: Iterable[Sink]) -> Diagnosis:
    """Stream a recorded run to sinks, as if it ran now: every step, every finding, the end. Returns its diagnosis."""
    feed = Feed(sinks)
    for step, values in recorded_values(trace):
        feed.step(step, values)
    diagnosis = diagnose_trace(trace)
    for finding in diagnosis.findings:
        feed.finding(finding)
    feed.end(diagnosis)
    return diagnosis


def recorded_values(trace: Trace) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, values) of a recorded run in order of steps, of rank 0 in a distributed one; full-tier numbers included."""
    rank = min(trace.ranks)
    rows = {row.step: row for row in trace.steps() if row.rank == rank}
    stats: dict[int, dict[SeriesKey, Extremes]] = {}
    for key, array in trace.sites().items():
        for row in array[array["rank"] == rank]:
            extremes = (float(row["minimum"]), float(row["maximum"]), float(row["rms"]))
            stats.setdefault(int(row["step"]), {})[key] = extremes
    full: dict[int, dict[str, float]] = {}
    for measure in trace.measures():
        if measure.rank == rank and measure.head < 0 and measure.mode.startswith("train"):
            name = f"{measure.name}/{short_name(measure.layer, 120)}" if measure.layer else measure.name
            full.setdefault(measure.step, {})[name] = measure.value
    for step in sorted({*rows, *stats, *full}):
        yield step, {**full.get(step, {}), **step_values(rows.get(step), stats.get(step))}
