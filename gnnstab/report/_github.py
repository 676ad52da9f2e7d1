"""The report for GitHub Actions: workflow commands that become annotations of the run and of the checked file."""

from __future__ import annotations

from collections.abc import Sequence

from gnnstab.records import Diagnosis, Finding
from gnnstab.report import escape, summary
from gnnstab.report.numbers import measured

COMMANDS = {"error": "error", "warning": "warning", "info": "notice"}


def render(diagnosis: Diagnosis) -> str:
    """One command per finding, in the order to look at them, then the verdict as plain log text.

    GitHub shows the first ten annotations of each level per step, so the order matters.
    """
    word, rest = summary.verdict(diagnosis)
    lines = [_command(diagnosis, finding) for finding in summary.in_reading_order(diagnosis)]
    if summary.state(diagnosis) == "not-evaluable":
        lines.append(f"::warning title=gnnstab::{_data(rest)}")
    lines.append(f"gnnstab: {word} {escape.name(diagnosis.target.path, 200)}: {rest}")
    return "\n".join(lines) + "\n"


def render_many(diagnoses: Sequence[Diagnosis]) -> str:
    """The commands of all targets."""
    return "".join(render(diagnosis) for diagnosis in diagnoses)


def _command(diagnosis: Diagnosis, finding: Finding) -> str:
    properties = {"title": f"{finding.code} {finding.name}"}
    if diagnosis.target.kind != "model":
        properties = {"file": diagnosis.target.path, **properties}
    listed = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    place = summary.where(finding, diagnosis)
    return f"::{COMMANDS[finding.severity]} {listed}::{_data(f'{place}: {measured(finding)}. {escape.sentence(finding.message)}')}"


def _data(text: str) -> str:
    """Escape the part behind the second ``::``."""
    return escape.visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape the value of a property."""
    return _data(escape.name(text, 300)).replace(":", "%3A").replace(",", "%2C")
