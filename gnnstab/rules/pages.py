"""The page of a rule, in markdown: its docstring, and its thresholds."""

from __future__ import annotations

import dataclasses
import inspect
import re

from gnnstab.rules.base import Rule
from gnnstab.rules.registry import rule_class

HEADINGS = ("Why it matters", "What to do", "How it is measured", "When it is silent", "Sources")
"""The headings of every rule's docstring, in this order."""


def page(code: str) -> str:
    """The whole page of a rule, by code or name; raises `UsageError` when there is none."""
    rule = rule_class(code)
    points = f"Points to: {rule.cause}. " if rule.cause else ""
    parts = [
        f"# {rule.code} {rule.name}",
        "\n".join(f"- **{label}.** {sentence}" for label, sentence in brief(code) if sentence),
        f"{points}Highest severity: {rule.severity}. Confidence: {rule.confidence}.",
        _detail(code),
        _headed(code, HEADINGS[2]),
        _thresholds(rule),
        *(_headed(code, heading) for heading in HEADINGS[3:]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _detail(code: str) -> str:
    """What the two sections that the page opens with say beyond their first sentences."""
    told = "\n\n".join(filter(None, (_split(section(code, heading))[1] for heading in HEADINGS[:2])))
    return f"## In detail\n{told}" if told else ""


def _headed(code: str, heading: str) -> str:
    text = section(code, heading)
    return f"## {heading}\n{text}" if text else ""


def brief(code: str) -> tuple[tuple[str, str], ...]:
    """What the pattern is, why it matters and what to do, one sentence each."""
    return (
        ("What", summary(code)),
        ("Why", _split(section(code, HEADINGS[0]))[0]),
        ("Do", _split(section(code, HEADINGS[1]))[0]),
    )


_TOO_SHORT = 25


def _split(text: str) -> tuple[str, str]:
    """The first sentence, and the rest."""
    paragraph, mark, more = text.partition("\n\n")
    first, *sentences = re.split(r"(?<=[.]) (?=[A-Z`*])", " ".join(paragraph.split()))
    # "It is not." tells nothing without what follows.
    if len(first) < _TOO_SHORT and sentences:
        first = f"{first} {sentences.pop(0)}"
    return first, (" ".join(sentences) + mark + more).strip()


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
    """The thresholds as a list, or an empty text; the names are those that a configuration may set."""
    rows = [
        f"- `{field.name}`: {field.default:g} [{field.metadata['unit']}], {field.metadata['source']}"
        for field in dataclasses.fields(rule)
        if "unit" in field.metadata
    ]
    return "\n".join(["## Thresholds", "", *rows]) if rows else ""
