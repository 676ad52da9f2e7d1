"""A small rulebook, so that what a report says does not change with every edit of a rule's page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from example_parts import RULES
from gnnstab.report import _rulebook as rulebook
from gnnstab.rules.base import Rule


@dataclass(frozen=True)
class _Page(Rule):
    severity: ClassVar[str] = "warning"
    confidence: ClassVar[str] = "high"

    def check(self, signals):
        yield from ()


def rule(code: str) -> type[Rule]:
    page = f"The pattern {RULES[code]} was measured.\n\n## How it is measured\nNumbers of `{code}` <in> a table | row."
    return type("Page", (_Page,), {"__doc__": page, "code": code, "name": RULES[code], "cause": ""})


@pytest.fixture
def small_rulebook(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {code: rule(code) for code in RULES}
    monkeypatch.setattr(rulebook, "known", lambda: rules)
    monkeypatch.setattr("gnnstab.__version__", "0.0.0")
    monkeypatch.setattr("gnnstab.report._sarif.__version__", "0.0.0")
