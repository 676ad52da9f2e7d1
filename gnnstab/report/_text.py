"""The report for a terminal: a short one that fits a screen, and with ``-v`` a long one that holds everything.

Rich lays it out; the text carries the meaning without colour, so pipes and ``NO_COLOR`` lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from gnnstab.records import Diagnosis
from gnnstab.report import escape, summary
from gnnstab.report._text_layers import coverage, layers
from gnnstab.report._text_short import one_line, short
from gnnstab.report.console import WIDEST, printed
from gnnstab.report.text_parts import advice, causes, changes, findings
from gnnstab.report.text_style import HEADING, MUTED, RED, STATE


def render(
    diagnosis: Diagnosis,
    *,
    width: int = 80,
    color: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    brief: bool = False,
) -> str:
    """The report as text.

    Args:
        diagnosis: What to report.
        width: Columns, at least 40.
        color: ``standard``, ``256`` or ``truecolor`` for ANSI colours, None for plain text.
        verbose: All causes, findings, layers, rules and reasons instead of the short report.
        quiet: One line.
        brief: One line where nothing at warning or above was found, else the short report: what a check says.
    """
    return render_many([diagnosis], width=width, color=color, verbose=verbose, quiet=quiet, brief=brief)


def render_many(
    diagnoses: Sequence[Diagnosis],
    *,
    width: int = 80,
    color: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    brief: bool = False,
) -> str:
    """The reports one after another, blank lines between those of several lines; options as for `render`."""
    parts: list[RenderableType] = []
    lonely = True
    for diagnosis in diagnoses:
        single = quiet or (brief and not verbose and not diagnosis.at_least("warning"))
        if parts and not (lonely and single):
            parts.append(Text())
        lonely = single
        parts.append(_report(diagnosis, min(width, WIDEST), verbose, single))
    return printed(parts, width, color)


def _report(diagnosis: Diagnosis, width: int, verbose: bool, single: bool) -> RenderableType:
    if single:
        return one_line(diagnosis, width)
    if not verbose:
        return short(diagnosis, width)
    return Group(
        _first_line(diagnosis, width), _target(diagnosis), *_first_break(diagnosis), *_sections(diagnosis, width)
    )


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


def _sections(diagnosis: Diagnosis, width: int) -> Iterator[RenderableType]:
    told = summary.Told()
    titled: list[tuple[str, RenderableType | None]] = [
        ("What to change first", changes(diagnosis, told)),
        ("Causes", _indented(causes(diagnosis, width, told))),
        ("Findings, in the order to look at them", _indented(findings(diagnosis, told))),
        ("Well-known advice that would not help here", _indented(advice(diagnosis))),
        ("Layers", _indented(layers(diagnosis, width))),
        ("What was seen, and what was not", _indented(coverage(diagnosis))),
    ]
    for title, body in titled:
        if body is not None:
            yield Text()
            yield Text(title, style=HEADING)
            yield body


def _indented(body: RenderableType | None) -> RenderableType | None:
    return None if body is None else Padding(body, (0, 0, 0, 2))
