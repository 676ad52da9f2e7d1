"""The engine: statuses, selection, thresholds, broken rules, plugins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from gnnstab.errors import ConfigurationError, UsageError
from gnnstab.records import Event, Finding, LayerFacts, Signal, Signals
from gnnstab.rules import RULES, Override, Rule, run
from gnnstab.rules.registry import join, rule_class
from gnnstab.rules.selection import Selection

CODES = [rule.code for rule in RULES]


def saturated(*layers: str) -> Signals:
    facts = tuple(LayerFacts(name, "TransformerConv", i, True) for i, name in enumerate(layers))
    values = [
        Signal(name, value, layer)
        for layer in layers
        for name, value in (("attention.entropy", 0.2), ("attention.entropy_unit_input", 0.2))
    ]
    return Signals("model", facts, tuple(values))


@dataclass(frozen=True)
class Broken(Rule):
    """Always fails."""

    code: ClassVar[str] = "ZZ001"
    name: ClassVar[str] = "broken"
    cause: ClassVar[str] = ""
    severity: ClassVar[str] = "info"
    confidence: ClassVar[str] = "low"

    def check(self, signals: Signals) -> Iterator[Finding]:
        raise KeyError("absent")


def test_every_rule_gets_exactly_one_status() -> None:
    outcome = run(Signals("model", ()))
    assert [status.code for status in outcome.statuses] == CODES
    assert {status.status for status in outcome.statuses} <= {"passed", "not-applicable", "not-evaluable"}
    assert all(status.reason for status in outcome.statuses if status.status in ("not-applicable", "not-evaluable"))


def test_a_broken_rule_is_named_and_the_others_go_on() -> None:
    outcome = run(saturated("a"), rules=[Broken, *RULES])
    codes = [finding.code for finding in outcome.findings]
    assert codes == ["GS902", "GS301"]
    assert "ZZ001" in outcome.findings[0].message
    assert "KeyError" in outcome.findings[0].message
    statuses = {status.code: status.status for status in outcome.statuses}
    assert statuses["ZZ001"] == "not-evaluable"
    assert statuses["GS902"] == "fired"


def test_select_and_ignore_by_prefix() -> None:
    statuses = {s.code: s.status for s in run(saturated("a"), select=["GS3"], ignore=["GS303"]).statuses}
    assert statuses["GS301"] == "fired"
    assert statuses["GS303"] == statuses["GS101"] == "suppressed"


@pytest.mark.parametrize(
    ("select", "ignore", "code", "included"),
    [
        ([], [], "GS301", True),
        (["GS3"], [], "GS301", True),
        (["GS3"], [], "GS401", False),
        ([], ["GS3"], "GS301", False),
        ([], ["GS3"], "GS401", True),
        (["GS301"], ["GS3"], "GS301", True),
        (["GS3"], ["GS301"], "GS301", False),
        (["GS3"], ["GS3"], "GS301", False),
        (["ALL"], ["GS3"], "GS101", True),
        (["gs3"], [], "GS301", True),
        ([], ["ALL"], "GS301", False),
    ],
)
def test_the_longer_prefix_decides(select: list[str], ignore: list[str], code: str, included: bool) -> None:
    assert Selection.parse(select, ignore, codes=CODES).includes(code) is included


@pytest.mark.parametrize("prefix", ["GS8", "XX", "", " ", "GS3012"])
def test_an_unknown_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="no rule code begins with"):
        run(saturated("a"), select=[prefix])
    with pytest.raises(UsageError, match="ignore"):
        run(saturated("a"), ignore=[prefix])


def test_thresholds_are_replaced_by_name() -> None:
    assert not run(saturated("a"), select=["GS301"], thresholds={"GS301": {"warn_entropy": 0.1}}).findings
    assert (
        run(saturated("a"), select=["GS301"], thresholds={"GS301": {"error_entropy": 0.3}}).findings[0].severity
        == "error"
    )


def test_an_unknown_threshold_lists_the_valid_ones() -> None:
    with pytest.raises(
        ConfigurationError, match=r"GS301 has no threshold 'entropy'; it has: warn_entropy, error_entropy"
    ):
        run(saturated("a"), thresholds={"GS301": {"entropy": 0.1}})
    with pytest.raises(ConfigurationError, match="no such rule"):
        run(saturated("a"), thresholds={"GS999": {"entropy": 0.1}})
    with pytest.raises(ConfigurationError, match="must be a number"):
        run(saturated("a"), thresholds={"GS301": {"warn_entropy": "low"}})  # type: ignore[dict-item]


def test_overrides_hold_for_matching_layers_only() -> None:
    overrides = [Override("b*", "GS301", {"warn_entropy": 0.1})]
    found = run(saturated("a", "b1", "b2"), select=["GS301"], overrides=overrides).findings
    assert [finding.layer for finding in found] == ["a"]


def test_the_first_matching_override_counts() -> None:
    overrides = [Override("b1", "GS301", {"warn_entropy": 0.3}), Override("b*", "GS301", {"warn_entropy": 0.1})]
    found = run(saturated("a", "b1", "b2"), select=["GS301"], overrides=overrides).findings
    assert [finding.layer for finding in found] == ["a", "b1"]


def test_rules_are_found_by_code_and_by_name() -> None:
    assert rule_class("gs301") is rule_class("attention-explosion")
    with pytest.raises(UsageError, match="no rule 'GS999'"):
        rule_class("GS999")


def plugin(value: str) -> EntryPoint:
    return EntryPoint(name="mine", value=value, group="gnnstab.rules")


def test_a_plugin_stands_behind_the_built_in_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda self: Broken)
    assert join(RULES, [plugin("pkg:Broken")])[-1] is Broken


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("no_such_package_of_rules:Rule", "'mine' .*failed to load: ModuleNotFoundError"),
        ("gnnstab.rules.engine:run", "not a subclass"),
        ("gnnstab.rules.gs301_attention_explosion:AttentionExplosion", "GS301 is already in use by gnnstab itself"),
    ],
)
def test_a_bad_plugin_is_named(value: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        join(RULES, [plugin(value)])


@pytest.mark.parametrize("code", ["G001", "GSGSG001", "gs001", "GS01", "GS0001"])
def test_a_malformed_code_is_refused(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = type("Bad", (Broken,), {"code": code})
    monkeypatch.setattr(EntryPoint, "load", lambda self: bad)
    with pytest.raises(ConfigurationError, match="two to four capital letters"):
        join(RULES, [plugin("pkg:Bad")])


def test_hostile_numbers_break_no_rule() -> None:
    """NaN, infinities, zeros and huge values in every signal: each rule ends with a status of its own."""
    from gnnstab.records import SIGNALS

    facts = tuple(
        LayerFacts.of(
            f"c{i}", "TransformerConv", i, True, dropout=0.1, beta=True, norm_after="GraphNorm", identity_path=False
        )
        for i in range(12)
    )
    for value in (float("nan"), float("inf"), -float("inf"), 0.0, 1e300, -1e300, 5e-324):
        values = [Signal(name, value, layer) for name in SIGNALS for layer in ("c0", "c11", None)]
        events = (Event(0, "non-finite"), Event(3, "tool-failure"))
        outcome = run(Signals("model", facts, tuple(values), events=events))
        assert not [f for f in outcome.findings if f.code == "GS902" and f.message.startswith("rule ")]
