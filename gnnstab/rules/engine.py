"""Runs rules over signals: every rule ends with a status, and no rule can take the others down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from gnnstab.errors import ConfigurationError, NotApplicable, NotEvaluable, let_through
from gnnstab.records import Finding, RuleStatus, Signals
from gnnstab.records.vocabulary import SCORE_GROWTH
from gnnstab.rules._by_steps import by_steps
from gnnstab.rules._one_batch import of_one_batch, of_the_broken_step
from gnnstab.rules.base import Rule
from gnnstab.rules.disproved import disproved
from gnnstab.rules.explanation import explain
from gnnstab.rules.learned import in_the_way
from gnnstab.rules.recalled import findings_in, joined, outlived, settled
from gnnstab.rules.registry import rule_classes
from gnnstab.rules.selection import Selection

R = TypeVar("R", bound=Rule)

RULE_FAILED = "the rule failed: "
"""How the reason of a rule that raised begins."""

Thresholds = Mapping[str, Mapping[str, float]]
"""Rule code → threshold name → value."""


@dataclass(frozen=True, slots=True)
class Override:
    """Thresholds of one rule that hold for some layers only."""

    layer: str
    """Glob over layer names."""

    code: str
    thresholds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the engine gives."""

    findings: tuple[Finding, ...]
    """In the order of the table."""

    statuses: tuple[RuleStatus, ...]
    """One per rule of the table, in its order."""


def run(
    signals: Signals,
    *,
    rules: Sequence[type[Rule]] | None = None,
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    thresholds: Thresholds | None = None,
    overrides: Sequence[Override] = (),
) -> Outcome:
    """Judge signals by every selected rule.

    Args:
        signals: The numbers and facts.
        rules: Rule classes; all built-in ones and plugins when omitted.
        select: Code prefixes to run; empty for all.
        ignore: Code prefixes to leave out, stronger than ``select`` unless the selecting prefix is longer.
        thresholds: Values that replace thresholds of rules.
        overrides: Thresholds that hold for some layers only; the first that matches a layer counts.

    Raises:
        UsageError: A prefix matches no rule.
        ConfigurationError: An override names an unknown rule or threshold.
    """
    classes = rule_classes() if rules is None else tuple(rules)
    selection = Selection.parse(select, ignore, codes=[rule.code for rule in classes])
    plain = {rule.code: configure(rule, (thresholds or {}).get(rule.code, {})) for rule in classes}
    _refuse_unknown_codes(plain, [*(thresholds or {}), *(override.code for override in overrides)])
    special = _special(plain, thresholds or {}, overrides)

    kept: list[Finding] = []
    statuses: list[RuleStatus] = []
    raised = [_tried(f, signals) for f in findings_in(signals.events) if not settled(f, signals.series)]
    raised += of_the_broken_step(signals)
    for rule in plain.values():
        if not selection.includes(rule.code):
            statuses.append(RuleStatus(rule.code, "suppressed", "not selected"))
            continue
        status, found = _judge(rule, signals, special.get(rule.code, ()))
        everything = joined(rule, found, raised)
        if len(everything) > len(found):
            found, status = everything, RuleStatus(rule.code, "fired")
        kept += [in_the_way(disproved(outlived(f, signals), signals), signals) for f in found]
        statuses.append(status)
    return Outcome(explain(kept, signals), _with_failures(statuses, kept))


def _tried(finding: Finding, signals: Signals) -> Finding:
    """A jump that one batch has made as one of its input; scores that grew as the steps with softer ones judge them, taken at the end."""
    finding = of_one_batch(finding, signals)
    return by_steps(finding, signals) if finding.signal == SCORE_GROWTH else finding


def configure(rule: type[R], overrides: Mapping[str, float]) -> R:
    """An instance of a rule with some thresholds replaced."""
    valid = [field.name for field in dataclasses.fields(rule)]
    for name, value in overrides.items():
        if name not in valid:
            known = ", ".join(valid) or "none"
            raise ConfigurationError(f"{rule.code} has no threshold {name!r}; it has: {known}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigurationError(f"threshold {rule.code}.{name} must be a number, not {value!r}")
    return rule(**{name: float(value) for name, value in overrides.items()})


def _special(
    plain: Mapping[str, Rule], thresholds: Thresholds, overrides: Sequence[Override]
) -> dict[str, list[tuple[str, Rule]]]:
    """Rule code → (layer glob, rule configured for those layers)."""
    special: dict[str, list[tuple[str, Rule]]] = {}
    for override in overrides:
        joined = {**thresholds.get(override.code, {}), **override.thresholds}
        special.setdefault(override.code, []).append((override.layer, configure(type(plain[override.code]), joined)))
    return special


def _refuse_unknown_codes(known: Mapping[str, Rule], given: Sequence[str]) -> None:
    for code in given:
        if code not in known:
            raise ConfigurationError(
                f"thresholds are given for {code!r}, but there is no such rule; see `gnnstab rules`"
            )


def _judge(rule: Rule, signals: Signals, special: Sequence[tuple[str, Rule]]) -> tuple[RuleStatus, list[Finding]]:
    """One rule's status and findings; layers with own thresholds are judged by the rule configured for them."""
    try:
        found = [f for f in rule.check(signals) if not any(_matches(f, glob) for glob, _ in special)]
        for position, (glob, variant) in enumerate(special):
            earlier = [g for g, _ in special[:position]]
            found += [
                f for f in variant.check(signals) if _matches(f, glob) and not any(_matches(f, g) for g in earlier)
            ]
    except NotApplicable as outcome:
        return RuleStatus(rule.code, "not-applicable", str(outcome)), []
    except NotEvaluable as outcome:
        return RuleStatus(rule.code, "not-evaluable", str(outcome)), []
    except Exception as error:  # a broken rule must not hide what the others see
        let_through(error)
        return RuleStatus(rule.code, "not-evaluable", f"{RULE_FAILED}{_describe(error)}"), [_failure(rule, error)]
    return RuleStatus(rule.code, "fired" if found else "passed", ""), found


def _matches(finding: Finding, glob: str) -> bool:
    return fnmatchcase(finding.layer or "", glob)


def _with_failures(statuses: Sequence[RuleStatus], found: Sequence[Finding]) -> tuple[RuleStatus, ...]:
    """GS902 fires for failures of other rules as well, which may stand behind it in the table."""
    failed = any(finding.code == "GS902" for finding in found)
    return tuple(RuleStatus(s.code, "fired", s.reason) if failed and s.code == "GS902" else s for s in statuses)


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _failure(rule: Rule, error: Exception) -> Finding:
    return Finding(
        code="GS902",
        name="tool-failure",
        cause="",
        severity="warning",
        confidence="high",
        layer=None,
        head=None,
        step=None,
        signal="",
        value=float("nan"),
        threshold=float("nan"),
        unit="",
        message=f"rule {rule.code} {rule.name} failed with {_describe(error)}; what it would have said is unknown. "
        "Please report this with the trace or checkpoint.",
    )
