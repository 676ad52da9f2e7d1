"""Every rule on its cases: broken models, their repaired twins, and what looks alike and is healthy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gnnstab.records import Blind, Event, LayerFacts, Series, Signal, Signals
from gnnstab.rules import RULES, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CASES = Path(__file__).parent / "cases"
TABLE = {rule.code: rule for rule in RULES}


def load(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as stream:
        return tomllib.load(stream)["case"]


ALL = [(path.stem.upper(), case) for path in sorted(CASES.glob("*.toml")) for case in load(path)]


def build(case: dict[str, Any]) -> Signals:
    """Layers ``others`` first, then ``depth`` attention layers ``conv0``, …; ``each`` gives every one of those a value."""
    others = [
        LayerFacts(kind="Embed", position=i, attention=False, **other) for i, other in enumerate(case.get("others", ()))
    ]
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in case.get("layer", {}).items()}
    convs = [LayerFacts.of(f"conv{i}", "TransformerConv", len(others) + i, True, **facts) for i in range(case["depth"])]
    values = [Signal(**value) for value in case.get("values", ())]
    values += [Signal(layer=conv.name, source="weights", **value) for value in case.get("each", ()) for conv in convs]
    losses = np.array(case.get("losses", ()), dtype=float)
    return Signals(
        kind=case.get("kind", "model"),
        layers=(*others, *convs),
        values=tuple(values),
        events=tuple(Event(**{**event, "nodes": tuple(event.get("nodes", ()))}) for event in case.get("events", ())),
        blind=tuple(Blind(**blind) for blind in case.get("blind", ())),
        context=case.get("context", {}),
        series=(Series("loss", None, None, np.arange(len(losses)), losses),) if len(losses) else (),
    )


@pytest.mark.parametrize(("code", "case"), ALL, ids=[f"{code}: {case['name']}" for code, case in ALL])
def test_case(code: str, case: dict[str, Any]) -> None:
    outcome = run(build(case), rules=[TABLE[code]])
    expected = case.get("findings", [])
    found = [
        f"{f.severity}:{f.layer}" if any(":" in text for text in expected) else f.severity for f in outcome.findings
    ]
    assert found == expected
    status = outcome.statuses[0]
    assert status.status == case.get("status", "fired")
    assert case.get("reason", "") in status.reason
    for finding in outcome.findings:
        assert finding.code == code
        assert finding.message.endswith(".")
        assert finding.cause == case.get("cause", finding.cause)
        assert finding.confidence == case.get("confidence", finding.confidence)
        assert finding.signal == case.get("signal", finding.signal)


def test_a_case_needs_something_to_expect() -> None:
    assert all("findings" in case or "status" in case for _, case in ALL)


@pytest.mark.parametrize("code", sorted(TABLE))
def test_every_rule_has_a_firing_and_a_silent_case(code: str) -> None:
    own = [case for name, case in ALL if name == code]
    assert any(case.get("findings") for case in own)
    assert any("findings" not in case for case in own)
    assert code == "GS304" or any(case["name"].startswith("repaired") for case in own) or code in ("GS203", "GS204")
