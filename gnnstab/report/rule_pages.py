"""The table of rules and one rule's page, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from gnnstab.report import _rulebook as rulebook
from gnnstab.report.console import printed
from gnnstab.report.faces import plain
from gnnstab.report.text_parts import table
from gnnstab.report.text_style import SEVERITY


def rule_table(codes: Sequence[str], *, width: int = 80, color: str | None = None) -> str:
    """Code, name, highest severity and first sentence of each rule."""
    grid = table("Code", "Severity", "Name and meaning")
    for code in codes:
        rule = rulebook.known()[code]
        meaning = Text.assemble((rule.name, "bold"), "\n", rulebook.first_sentence(code))
        grid.add_row(Text(code), Text(rule.severity, style=SEVERITY[rule.severity]), meaning)
    return printed([grid], width, color)


def rule_page(code: str, *, width: int = 80, color: str | None = None) -> str:
    """One rule's page, opened by what it is, why it matters and what to do; by code or name. Raises `UsageError` when there is none."""
    from gnnstab.rules.pages import brief, page

    opening = Table.grid(padding=(0, 2, 0, 0))
    for label, sentence in brief(code):
        opening.add_row(Text(label, style="bold"), Text(plain(sentence.replace("`", ""))))
    return printed([opening, Text(), Markdown(page(code), hyperlinks=False)], width, color)
