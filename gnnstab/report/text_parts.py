"""The sections of the terminal report; each returns None when it has nothing to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from gnnstab.records import Cause, Diagnosis, Finding, FixAdvice
from gnnstab.report import escape, summary
from gnnstab.report.console import CAUSE, MUTED, SEVERITY, VERDICT
from gnnstab.report.numbers import measured, number
from gnnstab.report.summary import Told

if TYPE_CHECKING:
    from rich.table import Table


def changes(diagnosis: Diagnosis, told: Told) -> RenderableType | None:
    """The causes to treat, each with its evidence and the code of its fixes; code is never wrapped."""
    chosen = summary.treated(diagnosis)
    parts = [part for i, cause in enumerate(chosen, start=1) for part in _change(i, cause, told)]
    if test := summary.how_to_test(fix for cause in chosen for fix in cause.fixes):
        how = f"{test[0]} tests one fix, {test[1]} all of them.{summary.whose_weights(test)}"
        parts.append(Padding(Text(how, style=MUTED), (0, 0, 0, 2)))
    return Group(*parts) if parts else None


def _change(position: int, cause: Cause, told: Told) -> Iterator[RenderableType]:
    yield Text.assemble(f"  {position}. ", (cause.cause, "bold"), (f"  {summary.standing(cause)}", CAUSE[cause.status]))
    if reason := told.new(escape.sentence(cause.reason)):
        yield Padding(Text(reason), (0, 0, 0, 5))
    for fix in summary.fixes_in_order(cause):
        code = escape.code(fix.change)
        repeated = told.before(code)
        yield Padding(_fix_line(fix, "; the change stands above" if repeated else ""), (0, 0, 0, 5))
        # Rich crops what stands in a padding, so the blanks are part of the code's text.
        for line in () if repeated else code.split("\n"):
            yield Text(f"       {line}", no_wrap=True, overflow="ignore")
    if summary.recommended(cause) is None:
        failed = ", ".join(fix.fix for fix in cause.fixes)
        why = f"No fix to recommend{f'; measured to fail: {escape.sentence(failed)}' if failed else ''}."
        yield Padding(Text(why, style=MUTED), (0, 0, 0, 5))


def _fix_line(fix: FixAdvice, tail: str) -> Text:
    line = Text.assemble(
        "Fix ", (escape.name(fix.fix), "bold"), ": ", (summary.verdict_words(fix.verdict), VERDICT[fix.verdict])
    )
    if fix.before is not None or fix.after is not None:
        line.append(f", {escape.name(fix.signal)} {number(fix.before)} → {number(fix.after)}")
    if note := summary.note(fix):
        line.append(f" ({escape.sentence(note)})", style=MUTED)
    return line.append(tail, style=MUTED)


def causes(diagnosis: Diagnosis, width: int, told: Told) -> RenderableType:
    """The five causes in their fixed order, then further ones that are not absent; what was told above is not repeated.

    A narrow terminal has the fixes below the evidence instead of in a column of their own.
    """
    wide = width >= 100
    headings = ("Evidence or reason", "Fix: verdict") if wide else ("Evidence or reason, → fix: verdict",)
    grid = table("Cause", "Status", *headings)
    above = summary.treated(diagnosis)
    quiet = summary.unsuspected(diagnosis)
    for cause in summary.told(diagnosis):
        evidence = Text(told.new(escape.sentence(cause.reason, 40)) or "as above")
        offered = () if cause in above else summary.offered(cause)
        fixes = [_fix_cell(fix, "" if wide else "→ ") for fix in offered]
        apart = [evidence, Text("\n").join(fixes) if fixes else Text("–", style=MUTED)]
        cells = apart if wide else [Text("\n").join([evidence, *fixes])]
        grid.add_row(Text(cause.cause), Text(summary.verdict_words(cause.status), style=CAUSE[cause.status]), *cells)
    if quiet:
        return Group(grid, Text(f"Nothing in this run points to {', '.join(cause.cause for cause in quiet)}."))
    return grid


def _fix_cell(fix: FixAdvice, arrow: str) -> Text:
    return Text.assemble(
        arrow, escape.name(fix.fix, 24), ": ", (summary.verdict_words(fix.verdict), VERDICT[fix.verdict])
    )


def findings(diagnosis: Diagnosis, told: Told) -> RenderableType | None:
    """Findings by what to do first, those that say the same of several places together."""
    groups = summary.alike(diagnosis)
    return Group(*(part for found in groups for part in _alike(diagnosis, found, told))) if groups else None


def _alike(diagnosis: Diagnosis, found: list[Finding], told: Told) -> Iterator[RenderableType]:
    first = found[0]
    head = Text.assemble(
        (f"{first.severity:<8}", SEVERITY[first.severity]), (f"{first.code} {escape.name(first.name)}", "bold")
    )
    if len(found) > 1:
        head.append(f"  ×{len(found)}")
    if first.explained_by:
        head.append(f"  follows from {escape.name(first.explained_by)}", style=MUTED)
    yield head
    message = told.new(escape.sentence(first.message))
    places = [_place(diagnosis, finding) for finding in found]
    yield Padding(Group(*([Text(message)] if message else []), *places), (0, 0, 0, 8))


def _place(diagnosis: Diagnosis, finding: Finding) -> Text:
    place = Text.assemble((summary.where(finding, diagnosis), "bold"), f": {measured(finding)}")
    if finding.confidence != "high":
        place.append(f" ({finding.confidence} confidence)", style=MUTED)
    return place


def advice(diagnosis: Diagnosis) -> RenderableType | None:
    """What the reader may have heard and should not do here, with the measured reason."""
    if not diagnosis.advice:
        return None
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for item in diagnosis.advice:
        body = Text.assemble((escape.sentence(item.advice), "bold"), ": ", escape.sentence(item.reason))
        grid.add_row(Text(item.code, style=MUTED), body)
    return grid


def table(*headings: str, numbers: int | None = None) -> Table:
    """An empty table in the report's style; columns from position ``numbers`` on are right-aligned."""
    from rich.table import Table  # The one line of a check that passes has none.

    grid = Table(box=None, pad_edge=False, header_style=f"{MUTED} underline", padding=(0, 2, 0, 0))
    for position, heading in enumerate(headings):
        right = numbers is not None and position >= numbers
        grid.add_column(heading, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return grid


def relative_to(path: str) -> Text:
    """The line above a table whose layer names leave out a module path that all share."""
    return Text(f"in {escape.name(path)}:", style=MUTED)
