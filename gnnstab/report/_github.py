"""The report for GitHub Actions: workflow commands that become annotations of the run and of the checked file."""

from __future__ import annotations

from collections.abc import Sequence

from gnnstab.characters import counted
from gnnstab.fixes.text_edits import changed_lines
from gnnstab.records import Diagnosis, Finding
from gnnstab.report import escape, summary
from gnnstab.report.numbers import measured

_MOST = 10
"""Annotations that GitHub shows of one level in one step."""

COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def render(diagnosis: Diagnosis) -> str:
    """One command per rule with its first finding, in the order to look at them, then the verdict as plain log text.

    GitHub shows the first ten annotations of each level per step, so the order matters, and more would not be seen.
    """
    word, rest = summary.verdict(diagnosis)
    rules: dict[tuple[str, str], list[Finding]] = {}
    for finding in summary.in_reading_order(diagnosis):
        rules.setdefault((finding.code, finding.severity), []).append(finding)
    lines = [_command(diagnosis, found) for found in list(rules.values())[:_MOST]]
    if len(rules) > _MOST:
        left = ", ".join(dict.fromkeys(code for code, _ in list(rules)[_MOST:]))
        lines.append(f"gnnstab: {len(rules) - _MOST} more kinds of findings: {left}")
    if summary.state(diagnosis) == "not-evaluable":
        lines.append(f"::warning title=gnnstab::{_data(rest)}")
    lines += [f"::error title=gnnstab::{_data(escape.sentence(why))}" for why in diagnosis.context.get("left_out", ())]
    lines.append(f"gnnstab: {word} {escape.name(diagnosis.target.path, 200)}: {rest}")
    return "\n".join(lines) + "\n"


def render_many(diagnoses: Sequence[Diagnosis]) -> str:
    """The commands of all targets."""
    return "".join(render(diagnosis) for diagnosis in diagnoses)


def _command(diagnosis: Diagnosis, found: Sequence[Finding]) -> str:
    """The command for the first of these findings of one rule, with how many more places there are."""
    finding = found[0]
    properties = {"title": f"{finding.code} {finding.name}"}
    properties = {**_source(diagnosis, finding), **properties}
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    place = summary.where(finding, diagnosis)
    if len(found) > 1:
        place += f" and {counted(len(found) - 1, 'more place')}"
    said = escape.sentence(finding.message.removeprefix(f"{finding.layer}: "))
    return f"::{COMMANDS[finding.severity]} {listed}::{_data(f'{place}: {measured(finding)}. {said}')}"


def _source(diagnosis: Diagnosis, finding: Finding) -> dict[str, str]:
    """File and line of the user's code that a finding is about, where known: GitHub shows nothing in a binary file."""
    known = next((x.source_file for x in diagnosis.layers if x.name == finding.layer and x.source_file), "")
    path, _, line = known.rpartition(":")
    changes = [fix.change for c in diagnosis.causes if finding.code in c.codes for fix in summary.offered(c)]
    patch = next(filter(None, map(changed_lines, changes)), [])
    if path and line.isdecimal():
        return {"file": path, "line": line}
    return {"file": patch[0], "line": patch[1].split()[0]} if patch else {"file": known} if known else {}


def _data(text: str) -> str:
    """Escape the part behind the second ``::``."""
    return escape.visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape the value of a property."""
    return _data(escape.name(text, 300)).replace(":", "%3A").replace(",", "%2C")
