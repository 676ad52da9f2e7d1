"""The table of rules and one rule's page, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from gnnstab.report import _rulebook as rulebook
from gnnstab.report.console import SEVERITY, WIDEST, printed
from gnnstab.report.escape import ending
from gnnstab.report.faces import plain
from gnnstab.report.text_parts import table


def rule_table(codes: Sequence[str], *, width: int = 80, color: str | None = None) -> str:
    """Code, name, highest severity and first sentence of each rule."""
    grid = table("Code", "Severity", "Name and meaning")
    for code in codes:
        rule = rulebook.known()[code]
        meaning = Text.assemble((rule.name, "bold"), "\n", rulebook.first_sentence(code))
        grid.add_row(Text(code), Text(rule.severity, style=SEVERITY[rule.severity]), meaning)
    return printed([grid], width, color)


SUBJECTS = {
    "GS1": "architecture",
    "GS2": "initialisation",
    "GS3": "attention",
    "GS4": "data, graph",
    "GS5": "precision",
    "GS6": "optimisation",
    "GS7": "activations",
    "GS9": "what was not seen",
}
"""First three characters of a code → what its rules are about."""


def rule_list(codes: Sequence[str], *, by_subject: bool, width: int = 80, color: str | None = None) -> str:
    """One line per rule, or per subject with the first names."""
    known, lines = rulebook.known(), []
    if not by_subject:
        lines = [f"{code}  {known[code].severity:<7}  {known[code].name}" for code in codes]
        return printed(map(Text, lines), width, color)
    for prefix in dict.fromkeys(code[:3] for code in codes):
        names = [known[code].name for code in codes if code.startswith(prefix)]
        line = f"{prefix}  {len(names)} about {SUBJECTS.get(prefix, 'what a plugin sees')}: {', '.join(names)}"
        lines.append(ending(line, min(width, WIDEST)))
    told = "gnnstab rules --select GS3 lists those of a subject, -v all with their meaning"
    return printed(map(Text, [*lines, told]), width, color)


def rule_page(code: str, *, width: int = 80, color: str | None = None) -> str:
    """One rule's page, opened by what it is, why it matters and what to do; by code or name. Raises `UsageError` when there is none."""
    from gnnstab.rules.pages import page

    return printed([Markdown(page(code), hyperlinks=False)], width, color)


def labelled(lines: Iterable[tuple[str, str]]) -> Table:
    """Sentences in plain words beside their labels."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, sentence in lines:
        grid.add_row(Text(label, style="bold"), Text(plain(sentence.replace("`", ""))))
    return grid
