"""A comparison as text for a terminal or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from gnnstab.characters import counted
from gnnstab.compare._changes import Change, Comparison
from gnnstab.errors import UsageError
from gnnstab.records import SIGNALS, Finding
from gnnstab.report import escape, summary
from gnnstab.report.console import GREEN, HEADING, MUTED, RED, SEVERITY, printed
from gnnstab.report.numbers import compared, number
from gnnstab.report.text_parts import relative_to, table

NOTABLE = 1.1
"""Growth from which on a change is worth a line when no limit is asked for."""

ROWS = 8
FORMATS = ("text", "json")


def render(
    comparison: Comparison,
    format: str = "text",
    *,
    factor: float | None = None,
    width: int = 80,
    color: str | None = None,
    verbose: bool = False,
) -> str:
    """The comparison as text; ``factor`` is the growth from which on it fails."""
    if format == "json":
        document = {"schema_version": "1", **comparison.to_dict()}
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    if format != "text":
        raise UsageError(f"unknown format {format!r}; choose from {', '.join(FORMATS)}")
    return printed(_parts(comparison, factor, verbose), width, color)


def _parts(comparison: Comparison, factor: float | None, verbose: bool) -> Iterator[RenderableType]:
    yield _verdict(comparison, factor, verbose)
    names = (escape.name(t.path, 90) for t in (comparison.before, comparison.after))
    yield Text(" → ".join(names), style=MUTED)
    shown = _shown(comparison, factor, verbose)
    if shown:
        grown = len(comparison.grown(NOTABLE if factor is None else factor))
        yield from _section("What went towards danger", _changes(shown, grown, verbose))
    for title, found in (("New findings", comparison.new), ("Findings that are gone", comparison.gone)):
        if found:
            yield from _section(title, Group(*(_finding(f, verbose) for f in found)))
    for title, layers in (("Only before", comparison.only_before), ("Only after", comparison.only_after)):
        if layers:
            yield Text(f"\n{title}: {', '.join(escape.name(x) for x in layers)}", style=MUTED)


def _section(title: str, body: RenderableType) -> Iterator[RenderableType]:
    yield Text()
    yield Text(title, style=HEADING)
    yield Padding(body, (0, 0, 0, 2))


def _verdict(comparison: Comparison, factor: float | None, verbose: bool) -> Text:
    limit = NOTABLE if factor is None else factor
    grown = comparison.grown(limit)
    if not grown:
        text = f"nothing grew by {limit:g}× or more in {counted(len(comparison.changes), 'number')} compared"
        if comparison.only_before:
            lost = f"{text}; {counted(len(comparison.only_before), 'layer', 'is', 'are')} missing in the later state"
            return Text.assemble(("INCOMPLETE", f"bold {RED}"), "  ", (lost, "bold"))
        return Text.assemble(("STEADY", f"bold {GREEN}"), "  ", (text, "bold"))
    worst = grown[0]
    amount = f"{counted(len(grown), 'number')} grew by {limit:g}× or more"
    layer = escape.name(worst.layer) if worst.layer else "the model"
    head = "" if worst.head is None else f" head {worst.head}"
    place = f"worst: {name_of(worst, verbose)} {factor_of(worst)} at {layer}{head}"
    return Text.assemble(("GREW", f"bold {RED}"), "  ", (f"{amount}; {place}", "bold"))


def _shown(comparison: Comparison, factor: float | None, verbose: bool) -> list[Change]:
    if verbose:
        return [c for c in comparison.changes if c.growth > 1]
    grown = comparison.grown(min(factor or NOTABLE, NOTABLE))
    worst: dict[tuple[str, str | None, bool], Change] = {}
    for change in grown:  # strongest first: the head that grew most speaks for its layer
        worst.setdefault((change.signal, change.layer, change.extreme), change)
    return list(worst.values())


def _changes(shown: list[Change], grown: int, verbose: bool) -> RenderableType:
    rows = shown if verbose else shown[:ROWS]
    path, names = escape.apart([change.layer or "the model" for change in rows], 18)
    grid = table("Signal" if verbose else "What", "Layer", "Head", "Before", "After", "Factor", "Limit", numbers=3)
    grid.columns[0].no_wrap = True
    for change, name in zip(rows, names, strict=True):
        grid.add_row(
            Text(name_of(change, verbose)),
            Text(name),
            "all" if change.head is None else str(change.head),
            number(change.before) if change.before or math.isfinite(change.after) else "–",
            number(change.after),
            factor_of(change),
            _limit(change),
        )
    parts: list[RenderableType] = [relative_to(path), grid] if path else [grid]
    if len(rows) < grown:
        parts.append(Text(f"{len(rows)} of {grown} shown; -v shows all, head by head", style=MUTED))
    return Group(*parts)


def name_of(change: Change, verbose: bool = False) -> str:
    """What grew, in words or by its signal; with a word that its worst value of the run was compared, not the last."""
    name = change.signal if verbose else SIGNALS[change.signal].words or change.signal
    return f"{name} (worst)" if change.extreme else name


def factor_of(change: Change) -> str:
    """``×2.5``, or ``÷2.5`` of a number whose fall is the danger; ``new`` for growth from nothing."""
    if not math.isfinite(change.growth):
        return "new"
    return f"{'×' if SIGNALS[change.signal].rises else '÷'}{number(change.growth)}"


def _limit(change: Change) -> str:
    if change.rule is None or change.approach is None:
        return "–"
    return f"beyond {change.rule}" if change.approach >= 1 else f"{change.approach:.0%} to {change.rule}"


def _finding(finding: Finding, verbose: bool) -> Text:
    known = SIGNALS.get(finding.signal)
    name = known.words if known and known.words and not verbose else finding.signal
    return Text.assemble(
        (f"{finding.severity:<8}", SEVERITY[finding.severity]),
        (f"{finding.code} {escape.name(finding.name)}", "bold"),
        f"  {summary.where(finding)}: {name} {compared(finding.value, finding.threshold, finding.unit)}".rstrip(),
    )
