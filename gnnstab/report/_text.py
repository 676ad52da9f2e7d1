"""The report for a terminal: a short one that fits a screen, and with ``-v`` a long one that holds everything.

Rich lays it out; the text carries the meaning without colour, so pipes and ``NO_COLOR`` lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from gnnstab.records import Diagnosis
from gnnstab.report import summary
from gnnstab.report._text_layers import coverage, layers
from gnnstab.report._text_short import closing, one_line, opening, short
from gnnstab.report.console import HEADING, WIDEST, printed
from gnnstab.report.text_parts import advice, causes, changes, findings


def render_many(
    diagnoses: Sequence[Diagnosis],
    *,
    width: int = 80,
    color: str | None = None,
    verbose: bool = False,
    quiet: bool = False,
    brief: bool = False,
) -> str:
    """The reports as text one after another, blank lines between those of several lines.

    Args:
        diagnoses: What to report.
        width: Columns, at least 40.
        color: ``standard``, ``256`` or ``truecolor`` for ANSI colours, None for plain text.
        verbose: All causes, findings, layers, rules and reasons instead of the short report.
        quiet: One line.
        brief: One line where nothing at warning or above was found, else the short report: what a check says.
    """
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
    return Group(*opening(diagnosis, width), *_sections(diagnosis, width), Text(), *closing(diagnosis, width))


def _sections(diagnosis: Diagnosis, width: int) -> Iterator[RenderableType]:
    told = summary.Told()
    # The code of a change is part of its section's own text: rich would crop it in a padding.
    titled: list[tuple[str, RenderableType | None, int]] = [
        ("What to change first", changes(diagnosis, told), 0),
        ("Causes", causes(diagnosis, width, told), 2),
        ("Findings, in the order to look at them", findings(diagnosis, told), 2),
        ("Well-known advice that would not help here", advice(diagnosis), 2),
        ("Layers", layers(diagnosis, width), 2),
        ("What was seen, and what was not", coverage(diagnosis), 2),
    ]
    for title, body, indent in titled:
        if body is not None:
            yield Text()
            yield Text(title, style=HEADING)
            yield Padding(body, (0, 0, 0, indent)) if indent else body
