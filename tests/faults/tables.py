"""The tables of docs/accuracy.md, from what the detectors said."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from faults.injections import INJECTIONS
from faults.metrics import jaccard, score, wilson

Row = dict[str, Any]
DETECTORS = {"said": "gnnstab", "checklist": "the document as a checklist", "absolute": "naive absolute thresholds"}
CAUSES = tuple(injection.cause for injection in INJECTIONS)


def judged(rows: Sequence[Row], detector: str) -> list[tuple[set[str], set[str]]]:
    """(true causes, accused causes) of every row."""
    return [(set(row["causes"]), set(row[detector])) for row in rows]


def macro_f1(rows: Sequence[Row], detector: str) -> float:
    """Mean F1 over the causes that occur."""
    scores = [
        score(cause, judged(rows, detector)).f1 for cause in CAUSES if any(cause in row["causes"] for row in rows)
    ]
    return sum(scores) / len(scores) if scores else math.nan


def report(rows: Sequence[Row]) -> str:
    """All tables as Markdown."""
    rows = sorted(rows, key=lambda row: row["job"])
    return "\n\n".join([detectors(rows), per_cause(rows), strengths(rows)])


def detectors(rows: Sequence[Row]) -> str:
    """One line per detector."""
    healthy = [row for row in rows if row["kind"] == "healthy"]
    pairs = [row for row in rows if row["kind"] == "pair"]
    lines = [
        "| detector | healthy models flagged | macro-F1 | root cause first (single faults) | Jaccard (pairs) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, name in DETECTORS.items():
        flagged = sum(bool(row[key]) for row in healthy)
        low, high = wilson(flagged, len(healthy))
        lines.append(
            f"| {name} | {flagged} of {len(healthy)} ({_percent(low)}–{_percent(high)} %) | {macro_f1(rows, key):.3f} | "
            f"{_first(rows) if key == 'said' else '–'} | {jaccard(judged(pairs, key)):.2f} ({len(pairs)}) |"
        )
    return "\n".join(lines)


def _first(rows: Sequence[Row]) -> str:
    singles = [row for row in rows if row["kind"] == "single"]
    right = sum(bool(row["root"]) and row["root"][0] == row["causes"][0] for row in singles)
    low, high = wilson(right, len(singles))
    return f"{right / max(len(singles), 1):.3f} ({low:.2f}–{high:.2f}, n={len(singles)})"


def per_cause(rows: Sequence[Row]) -> str:
    """Precision, recall and F1 of gnnstab per cause."""
    lines = ["| cause | positives | precision | recall | F1 |", "| --- | --- | --- | --- | --- |"]
    for cause in CAUSES:
        counts = score(cause, judged(rows, "said"))
        positives, accused = counts.hits + counts.misses, counts.hits + counts.false_alarms
        if positives:
            lines.append(
                f"| {cause} | {positives} | {_interval(counts.hits, accused)} | {_interval(counts.hits, positives)} | {counts.f1:.2f} |"
            )
    return "\n".join(lines)


def strengths(rows: Sequence[Row]) -> str:
    """Share detected at each strength, single faults."""
    shares: dict[str, dict[float, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["kind"] == "single":
            ((cause, strength),) = row["recipe"]["faults"]
            shares[cause][strength].append(cause in row["said"])
    order = {i.cause: i.strengths for i in INJECTIONS}
    lines = ["| cause | share detected at each strength, weak to strong |", "| --- | --- |"]
    for cause in (c for c in CAUSES if c in shares):
        parts = [f"{s:g}: {sum(v) / len(v):.2f} ({len(v)})" for s in order[cause] if (v := shares[cause].get(s))]
        lines.append(f"| {cause} | {', '.join(parts)} |")
    return "\n".join(lines)


def _interval(successes: int, trials: int) -> str:
    if not trials:
        return "–"
    low, high = wilson(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f}–{high:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
