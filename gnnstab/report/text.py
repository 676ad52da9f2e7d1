"""The report for a terminal: verdict, what to change, causes, findings, advice, layers, coverage.

Rich lays it out; the text carries the meaning without colour, so pipes and ``NO_COLOR`` lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from gnnstab.records import Diagnosis
from gnnstab.report import escape, summary
from gnnstab.report.console import WIDEST, printed
from gnnstab.report.text_layers import coverage, layers
from gnnstab.report.text_parts import advice, causes, changes, findings
from gnnstab.report.text_style import HEADING, MUTED, RED, STATE


def render(
    diagnosis: Diagnosis, *, width: int = 80, color: str | None = None, verbose: bool = False, quiet: bool = False
) -> str:
    """The report as text.

    Args:
        diagnosis: What to report.
        width: Columns, at least 40.
        color: ``standard``, ``256`` or ``truecolor`` for ANSI colours, None for plain text.
        verbose: Every finding, all rules and their reasons, and all fixes.
        quiet: The first line alone.
    """
    return _print([_report(diagnosis, min(width, WIDEST), verbose, quiet)], width, color)


def render_many(
    diagnoses: Sequence[Diagnosis],
    *,
    width: int = 80,
    color: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
) -> str:
    """The reports one after another; options as for `render`."""
    reports = [_report(diagnosis, min(width, WIDEST), verbose, quiet) for diagnosis in diagnoses]
    return _print(reports, width, color, gap=not quiet)


def _print(reports: Sequence[RenderableType], width: int, color: str | None, gap: bool = True) -> str:
    parts = [part for report in reports for part in ((Text(), report) if gap else (report,))]
    return printed(parts[1:] if gap else parts, width, color)


def _report(diagnosis: Diagnosis, width: int, verbose: bool, quiet: bool) -> RenderableType:
    first = _first_line(diagnosis, width)
    if quiet:
        return Group(first, _target(diagnosis))
    return Group(first, _target(diagnosis), *_first_break(diagnosis), *_sections(diagnosis, width, verbose))


def _first_line(diagnosis: Diagnosis, width: int) -> Text:
    word, rest = summary.verdict(diagnosis)
    if len(word) + 2 + len(rest) > width:
        word, rest = summary.verdict(diagnosis, short=True)
    return Text.assemble((word, STATE[summary.state(diagnosis)]), "  ", (rest, "bold"))


def _target(diagnosis: Diagnosis) -> Text:
    run = [diagnosis.target.kind]
    precision = diagnosis.context.get("precision")
    if precision:
        run.append(escape.name(str(precision), 20))
    return Text(f"{escape.name(diagnosis.target.path, 90)} ({', '.join(run)})", style=MUTED)


def _first_break(diagnosis: Diagnosis) -> Iterator[Text]:
    """Where a number first stopped being one: what an engineer with a NaN wants to know before all else."""
    event = summary.first_non_finite(diagnosis)
    if event is not None:
        yield Text.assemble(("First non-finite value: ", f"bold {RED}"), escape.sentence(summary.event_place(event)))


def _sections(diagnosis: Diagnosis, width: int, verbose: bool) -> Iterator[RenderableType]:
    titled: list[tuple[str, RenderableType | None]] = [
        ("What to change first", changes(diagnosis, verbose)),
        ("Causes", causes(diagnosis, width, verbose)),
        ("Findings, in the order to look at them", findings(diagnosis, verbose)),
        ("Well-known advice that would not help here", advice(diagnosis)),
        ("Layers", layers(diagnosis, width, verbose)),
        ("What was seen, and what was not", coverage(diagnosis, verbose)),
    ]
    for title, body in titled:
        if body is not None:
            yield Text()
            yield Text(title, style=HEADING)
            yield Padding(body, (0, 0, 0, 2))
