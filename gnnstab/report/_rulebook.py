"""What reports say about a rule: its name, its first sentence, its page. Read from the rule itself."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache

from gnnstab.records import Diagnosis
from gnnstab.rules.base import Rule


@lru_cache(maxsize=1)
def known() -> dict[str, type[Rule]]:
    """Code → rule, built-in ones and those of plugins."""
    from gnnstab.rules.registry import rule_classes

    return {rule.code: rule for rule in rule_classes()}


def name(code: str) -> str:
    """The rule's name, or ``""`` for a code that is not installed here."""
    rule = known().get(code)
    return rule.name if rule else ""


def page(code: str) -> str:
    """The rule's docstring, or ``""``."""
    rule = known().get(code)
    return (inspect.getdoc(rule) or "") if rule else ""


def first_sentence(code: str) -> str:
    """The first paragraph of the page on one line, or ``""``."""
    return " ".join(page(code).split("\n\n")[0].split())


def codes(diagnoses: Sequence[Diagnosis]) -> list[str]:
    """Every code that an installed rule or one of the diagnoses has, sorted."""
    named = {rule.code for d in diagnoses for rule in d.rules}
    found = {finding.code for d in diagnoses for finding in (*d.findings, *(s.finding for s in d.suppressed))}
    return sorted({*known(), *named, *found})
