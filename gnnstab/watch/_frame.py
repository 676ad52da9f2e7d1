"""One frame: a snapshot as text that fits the terminal. Pure: the same snapshot gives the same frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.console import Group
from rich.text import Text

from gnnstab.characters import counted, is_hidden
from gnnstab.records import SEVERITIES, SIGNALS, Event, Finding, Series
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    GRADIENT_INPUT_RMS,
    GRADIENT_NORM,
    LOSS,
    OUTPUT_RMS,
    SCORE_MAX_ABS,
)
from gnnstab.report import escape, summary
from gnnstab.report.evidence import Evidence, Limit, status, worst
from gnnstab.report.numbers import number
from gnnstab.watch._snapshot import Snapshot
from gnnstab.watch._sparkline import sparkline

COLUMNS = (SCORE_MAX_ABS, ATTENTION_ENTROPY, OUTPUT_RMS, GRADIENT_INPUT_RMS)
"""From the most to the least telling; narrow terminals lose the last."""

STYLES = {"error": "bold red", "warning": "yellow", "info": "blue", "": ""}
MARKS = {"error": "■", "warning": "▲", "info": "●", "": " "}
ASCII_MARKS = {"error": "E", "warning": "W", "info": "i", "": " "}

SMALLEST = (40, 8)
"""Columns and rows below which a frame says that the terminal is too small."""


def frame(snapshot: Snapshot, width: int, height: int, *, ascii_only: bool = False, hint: str = "") -> Group:
    """The whole view in ``width`` columns and at most ``height`` rows; with a hint, exactly so many.

    Loss, rate and the worst layer come first. ``hint`` is the last line.
    """
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return _fit([Text(f"terminal too small: {width} × {height}")], width, max(height, 1))
    evidence = Evidence(snapshot.diagnosis)
    head = [_headline(snapshot, width), *_run_lines(snapshot, evidence, width, ascii_only)]
    room = height - len(head) - (1 if hint else 0)
    findings = _finding_lines(summary.in_reading_order(snapshot.diagnosis), ascii_only)
    events = [_event_line(event) for event in reversed(evidence.events()[-20:])]
    shares = _share(room, [len(_attention(evidence)) + 2, len(findings) + 1, len(events) + 1])
    lines = [*head, *_layer_lines(evidence, width, shares[0], ascii_only)]
    lines += _block("findings", findings, shares[1], "no findings so far")
    lines += _block("events, newest first", events, shares[2], "no events so far")
    if hint:
        lines = [*lines[: height - 1], *[Text()] * (height - 1 - len(lines)), Text(hint, style="dim")]
    return _fit(lines, width, height)


def _share(room: int, wanted: Sequence[int]) -> list[int]:
    """Rows for layers, findings and events: findings and events get at least four rows each where they need them."""
    layers, findings, events = wanted
    floor_findings, floor_events = min(findings, 4), min(events, 4)
    for_layers = min(layers, max(3, room - floor_findings - floor_events))
    left = max(0, room - for_layers)
    for_findings = min(findings, max(floor_findings, left - min(events, max(floor_events, left // 3))))
    return [for_layers, for_findings, max(0, left - for_findings)]


def _fit(lines: Sequence[Text], width: int, height: int) -> Group:
    fitted = []
    for line in lines[:height]:
        # The parts are escaped as they are written; a part that was forgotten costs its colours and no more.
        cut = line.copy() if not any(map(is_hidden, line.plain)) else Text(escape.visible(line.plain))
        cut.truncate(width, overflow="ellipsis")
        cut.no_wrap, cut.end = True, "\n"
        fitted.append(cut)
    fitted[-1].end = ""
    return Group(*fitted)


def _headline(snapshot: Snapshot, width: int) -> Text:
    word, rest = summary.verdict(snapshot.diagnosis, short=True)
    tone = {
        "UNSTABLE": "bold white on red",
        "STABLE": "bold white on green",
        "NOTHING FOUND": "bold white on blue",
    }.get(word, "bold black on yellow")
    line = Text(f" {word} ", style=tone)
    line.append(f" {escape.sentence(rest)}")
    line.truncate(width, overflow="ellipsis")
    return line


def _run_lines(snapshot: Snapshot, evidence: Evidence, width: int, ascii_only: bool) -> list[Text]:
    ended = "ended" if snapshot.complete else "running"
    told = [f"step {'–' if snapshot.step is None else snapshot.step}", ended]
    if snapshot.seconds > 0 and snapshot.steps > 1:
        told.append(f"{number((snapshot.steps - 1) / snapshot.seconds)} steps/s")
    told += [f"{name} {number(v)}" for name, v in (("lr", snapshot.lr), ("scale", snapshot.scale)) if v is not None]
    first = Text("  ".join(told), style="dim")
    first.append(f"  {escape.name(snapshot.path, max(width - first.cell_len - 2, 12))}")
    room = max((width - 2) // 2, 20)
    second = Text()
    for name in (LOSS, GRADIENT_NORM):
        series = next((s for s in evidence.growth() if s.name == name), None)
        cell = Text(f"{SIGNALS[name].heading} {_last(series)} ", style="")
        cell.append(sparkline(_values(series), max(room - cell.cell_len - 2, 4), ascii_only=ascii_only), style="cyan")
        second.append_text(cell).append("  ")
    notes = [Text(f"note: {escape.sentence(note)}", style="yellow") for note in snapshot.notes[:1]]
    return [first, second, *notes, Text()]


def _attention(evidence: Evidence) -> list[str]:
    """The layers with something to show."""
    recorded = {layer for layer in evidence.layers if any(s.name in COLUMNS for s in evidence.growth(layer))}
    return [n for n in evidence.layers if n in recorded or n in evidence.findings_by_layer]


def _layer_lines(evidence: Evidence, width: int, rows: int, ascii_only: bool) -> list[Text]:
    layers = _attention(evidence)
    columns = max(1, min(len(COLUMNS), (width - 20) // 14))
    cell = 14 if width < 100 else min(26, (width - 26) // columns)
    label = width - columns * cell - 2
    heading = Text("  " + "layer".ljust(label - 1) + " ", style="bold")
    for signal in COLUMNS[:columns]:
        heading.append(SIGNALS[signal].heading.ljust(cell))
    if not layers:
        return [heading, Text("  no layer recorded yet", style="dim")][:rows]
    shown = _chosen(evidence, layers, rows - 1)
    _, names = escape.apart(shown, label - 2)
    lines = [heading]
    for layer, name in zip(shown, names, strict=True):
        lines.append(_layer_line(evidence, layer, name, label, columns, cell, ascii_only))
    left = len(layers) - len(shown)
    if left:
        lines.append(Text(f"  … {counted(left, 'more layer')}", style="dim"))
    return lines[:rows]


def _chosen(evidence: Evidence, layers: list[str], rows: int) -> list[str]:
    """The layers that fit, the worst first, those alike in order of depth."""
    order = {layer: i for i, layer in enumerate(layers)}
    rank = {s: -i for i, s in enumerate(SEVERITIES, start=1)} | {"": 0}

    def key(layer: str) -> tuple[int, int, int]:
        numbers = [s for s in evidence.growth(layer) if s.name in COLUMNS]
        tones = [rank[_tone(s.values, evidence.limits(s.name))] for s in numbers]
        return rank[worst(evidence.findings_by_layer.get(layer, ()))], min(tones, default=0), order[layer]

    found = sorted(layers, key=key)
    return found if len(found) <= rows else found[: max(1, rows - 1)]


def _layer_line(
    evidence: Evidence, layer: str, name: str, label: int, columns: int, cell: int, ascii_only: bool
) -> Text:
    severity = worst(evidence.findings_by_layer.get(layer, ()))
    line = Text((ASCII_MARKS if ascii_only else MARKS)[severity] + " ", style=STYLES[severity])
    column = Text(name)
    column.truncate(label - 1, overflow="ellipsis", pad=True)
    line.append_text(column).append(" ")
    recorded = {s.name: s for s in evidence.growth(layer)}
    for signal in COLUMNS[:columns]:
        series = recorded.get(signal)
        values = _values(series)
        line.append(_last(series).rjust(7) + " ", style=STYLES[_tone(values, evidence.limits(signal))])
        line.append(sparkline(values, cell - 10, ascii_only=ascii_only) + "  ", style="cyan")
    return line


def _tone(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], limits: Sequence[Limit]) -> str:
    """The severity that the last value alone speaks of; no number at all is an error."""
    if not len(values):
        return ""
    return status(float(values[-1]), limits) if np.isfinite(values[-1]) else "error"


def _values(series: Series | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.empty(0) if series is None else series.values


def _last(series: Series | None) -> str:
    return number(float(series.values[-1])) if series is not None and len(series.values) else "–"


def _finding_lines(findings: Sequence[Finding], ascii_only: bool) -> list[Text]:
    lines = []
    for finding in findings:
        mark = (ASCII_MARKS if ascii_only else MARKS)[finding.severity]
        line = Text(f"{mark} {finding.code} ", style=STYLES[finding.severity])
        line.append(f"{escape.name(finding.name)}  ", style="bold")
        limit = "" if math.isnan(finding.threshold) else f" (limit {number(finding.threshold)})"
        line.append(f"{summary.where(finding)}  {finding.signal} {number(finding.value)}{limit}")
        lines.append(line)
    return lines


def _event_line(event: Event) -> Text:
    style = STYLES["error"] if event.kind in ("non-finite", "tool-failure") else ""
    line = Text(f"step {event.step} ", style="dim")
    line.append(escape.name(event.kind, 30), style=style)
    if event.layer:
        line.append(f"  {escape.name(event.layer, 30)}")
    if event.stage:
        words = [escape.name(word.replace("-", " "), 30) for word in (event.stage, event.origin) if word]
        line.append(f" {', '.join(words)}")
    return line.append(f"  {escape.sentence(event.message)}")


def _block(title: str, lines: list[Text], rows: int, empty: str) -> list[Text]:
    """A heading and as many lines as fit; the last one counts what is left out."""
    if rows < 2:
        return []
    body = lines or [Text(f"  {empty}", style="dim")]
    if len(body) > rows - 1:
        body = [*body[: rows - 2], Text(f"  … {len(body) - rows + 2} more", style="dim")]
    return [Text(title, style="bold"), *body]
