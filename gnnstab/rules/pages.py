"""The page of a rule, in markdown: its docstring, and its thresholds."""

from __future__ import annotations

import dataclasses
import inspect
import re

from gnnstab.rules.base import Rule
from gnnstab.rules.registry import rule_class

HEADINGS = ("What it sees", "Why it is unstable", "What it looks like", "Fix", "When it is wrong", "References")
"""The headings of every rule's docstring, in this order."""


def page(code: str) -> str:
    """The whole page of a rule, by code or name; raises `UsageError` when there is none."""
    rule = rule_class(code)
    summary, body = _text(rule)
    title = f"# {rule.code} {rule.name}"
    points = f"Points to: {rule.cause}. " if rule.cause else ""
    facts = f"{points}Highest severity: {rule.severity}. Confidence: {rule.confidence}."
    before, mark, references = body.partition("## References")
    return (
        "\n\n".join(
            part for part in (title, summary, facts, before.rstrip(), _thresholds(rule), mark + references) if part
        )
        + "\n"
    )


def brief(code: str) -> tuple[tuple[str, str], ...]:
    """What the pattern is, why it matters and what to do, one sentence each."""
    return (
        ("What", summary(code)),
        ("Why", _first_sentence(section(code, "Why it is unstable"))),
        ("Do", _first_sentence(section(code, "Fix"))),
    )


_TOO_SHORT = 25


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    first, *more = re.split(r"(?<=[.]) (?=[A-Z`*])", paragraph, maxsplit=2)
    # "It is not." tells nothing without what follows.
    return " ".join([first, *more[:1]]) if len(first) < _TOO_SHORT else first


def summary(code: str) -> str:
    """The first sentence of a rule's page: what the pattern is."""
    return _text(rule_class(code))[0]


def section(code: str, heading: str) -> str:
    """One section of a rule's page, without its heading; raises `KeyError` for a heading that is none of `HEADINGS`."""
    if heading not in HEADINGS:
        raise KeyError(heading)
    _, _, rest = _text(rule_class(code))[1].partition(f"## {heading}\n")
    return rest.partition("\n## ")[0].strip()


def _text(rule: type[Rule]) -> tuple[str, str]:
    """First paragraph on one line, and the rest."""
    first, _, rest = inspect.cleandoc(rule.__doc__ or "").partition("\n\n")
    return " ".join(first.split()), rest


def _thresholds(rule: type[Rule]) -> str:
    """The thresholds as a table, or an empty text; the names are those that a configuration may set."""
    rows = [
        f"| `{field.name}` | {field.default:g} | {field.metadata['unit']} | {field.metadata['source']} |"
        for field in dataclasses.fields(rule)
        if "unit" in field.metadata
    ]
    if not rows:
        return ""
    return "\n".join(["## Thresholds", "", "| name | value | unit | source |", "| --- | --- | --- | --- |", *rows])
