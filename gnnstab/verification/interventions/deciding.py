"""From what undoing the suspects did to root, contributing and explained-by."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, SIGNALS, Cause, Finding
from gnnstab.records.vocabulary import OPTIMIZER_UNDONE
from gnnstab.rules import harmful
from gnnstab.rules.explanation import is_warning
from gnnstab.rules.gs301_attention_explosion import OPEN
from gnnstab.verification.interventions._investigation import CONTRIBUTES, TRIED, Investigation, Tried
from gnnstab.verification.interventions._investigation import ROOT as ROOT
from gnnstab.verification.interventions._symptoms import Symptom

TIE = 0.2
"""Shares that lie no further below the best one are as good."""


_OF_WEIGHTS = ("unsuitable-init", "attention-explosion", "dead-units")
"""Causes that are a state of the weights, which training with too high a rate makes as well."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was decided about one symptom."""

    symptom: Symptom
    before: float
    root: Tried | None
    """The suspect that is its root; None when the cause is not established."""

    share: float
    """Of the root; of the best suspect where there is none, NaN where none was tried."""

    after: float
    ruled_out: tuple[str, ...]
    """Suspects whose undoing did little, each with its numbers."""

    excused: bool = False
    """True of sharp attention that the weights make, and that is of use, or may be (`Investigation.earned`)."""

    nearest: str = ""
    """What the best suspect was undone by, where none is the root and it contributes."""

    follows: Finding | None = None
    """What has made the root so: a rate that is too high, where the root are weights that were trained with it, or memory that nobody wrote."""

    @property
    def cause(self) -> str | None:
        """The root cause; None where it is not established, is no fault, or follows from another."""
        blamed = self.root is not None and self.follows is None and not self.excused
        return self.root.trial.cause if blamed and self.root is not None else None


def rulings(found: Investigation) -> tuple[Ruling, ...]:
    """One per symptom."""
    return tuple(_ruling(found, i) for i in range(len(found.symptoms)))


def _ruling(found: Investigation, i: int) -> Ruling:
    symptom, before = found.symptoms[i], found.before[i]
    known = [tried for tried in found.tried if not math.isnan(tried.shares[i])]
    if any(tried.shares[i] >= ROOT for tried in known if not tried.trial.also):
        known = [tried for tried in known if not tried.trial.also]
    best = max((tried.shares[i] for tried in known), default=math.nan)
    low = [tried for tried in known if tried.shares[i] < CONTRIBUTES]
    ruled_out = tuple(f"{tried.trial.words} {_moved(before, tried, i)}" for tried in low)
    sharp = bool(found.earned) and symptom.goal.signal.startswith("attention.")
    if not best >= ROOT:
        nearest = next((tried.trial.words for tried in known if tried.shares[i] == best >= CONTRIBUTES), "")
        return Ruling(symptom, before, None, best, math.nan, ruled_out, sharp, nearest)
    good = [tried for tried in known if tried.shares[i] >= max(ROOT, best - TIE)]
    # What differs from its reference explains more than what is merely configured, what reaches the healthy band more than what comes
    # near it; the table stands upstream first.
    root = max(good, key=lambda tried: (tried.trial.deviates, tried.shares[i] >= 1))
    of_weights = root.trial.cause in _OF_WEIGHTS
    follows = found.rate if of_weights else None
    return Ruling(
        symptom, before, root, root.shares[i], root.after[i], ruled_out, sharp and of_weights, follows=follows
    )


def _moved(before: float, tried: Tried, i: int) -> str:
    return f"{before:.2g} → {tried.after[i]:.2g} ({100 * max(0.0, tried.shares[i]):.0f} %)"


def undone(ruling: Ruling) -> str:
    """``standardising edge_attr on a copy brings attention entropy at conv1 from 0.13 to 0.81: 94 % of the way back``."""
    assert ruling.root is not None
    return (
        f"{_capital(ruling.root.trial.words)} on a copy brings {_quantity(ruling.symptom)} from "
        f"{ruling.before:.2g} to {ruling.after:.2g}: {100 * ruling.share:.0f} % of the way back to the healthy band."
    )


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _suspected_and_undone(ruling: Ruling) -> str:
    assert ruling.root is not None
    return f"{_capital(ruling.root.trial.suspect)}. {undone(ruling)}"


def _quantity(symptom: Symptom) -> str:
    goal = symptom.goal
    if goal.counts_events:
        return "the number of non-finite events"
    at = f" at {goal.layer}" if goal.layer else ""
    return f"{goal.signal}{at}"


def decided_findings(findings: Sequence[Finding], found: Investigation) -> tuple[Finding, ...]:
    """The findings with the causes that were shown; what was not shown says so."""
    rules = rulings(found)
    by_finding = {id(ruling.symptom.finding): ruling for ruling in rules}
    heads = _heads(findings, rules)
    changed = []
    for finding in findings:
        ruling = by_finding.get(id(finding))
        if ruling is not None:
            kept = ruling.root is None and _follows_from_what_was_seen(finding, findings)
            changed.append(finding if kept else _of_symptom(finding, ruling, found, heads))
        elif id(finding) in {id(head) for head in heads.values()}:
            changed.append(_promoted(finding, rules))
        elif finding.code == "GS301" and is_warning(finding) and finding.layer in _earned_layers(rules):
            changed.append(_of_use(finding, found))
        elif (own := _root_here(finding, rules)) is not None:
            message = f"{finding.message.removesuffix(OPEN)}. {_capital(own.trial.suspect)}."
            changed.append(replace(finding, message=message))
        else:
            changed.append(finding)
    return tuple(changed)


def _root_here(finding: Finding, rules: Sequence[Ruling]) -> Tried | None:
    """The root that was shown of other symptoms, where it lies in this layer as well, of which the rule has found no cause."""
    if finding.layer is None or not finding.message.endswith(OPEN):
        return None
    roots = (ruling.root for ruling in rules if ruling.root is not None and ruling.cause == finding.cause)
    return next((root for root in roots if finding.layer in root.trial.place.split(", ")), None)


def _earned_layers(rules: Sequence[Ruling]) -> set[str | None]:
    """Layers whose measured sharpness the loss needs and nothing else has brought about."""
    return {ruling.symptom.goal.layer for ruling in rules if ruling.excused}


def _of_use(finding: Finding, found: Investigation) -> Finding:
    """What the weights alone say of a layer whose sharpness was measured and is of use."""
    message = f"{finding.message} {found.earned}"
    return replace(finding, severity="info", explained_by=None, message=message)


def _heads(findings: Sequence[Finding], rules: Sequence[Ruling]) -> dict[str, Finding]:
    """For every cause that was shown: the finding about it that is no symptom itself, warnings first."""
    symptoms = {id(ruling.symptom.finding) for ruling in rules}
    shown = {ruling.cause for ruling in rules if ruling.cause is not None}
    heads: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda f: not is_warning(f)):
        # A cause that is named after its symptom has no other head than that.
        own = any(ruling.cause == finding.cause == ruling.symptom.finding.cause for ruling in rules)
        if finding.cause in shown and not own and id(finding) not in symptoms and finding.signal:
            heads.setdefault(finding.cause, finding)
    return heads


def _follows_from_what_was_seen(finding: Finding, findings: Sequence[Finding]) -> bool:
    """True where a rule has tied the symptom to a fault that no edit undoes, such as edges that are missing, or that steps on a copy have undone."""
    shown = [f for f in findings if is_warning(f) and (f.cause not in TRIED or f.signal == OPTIMIZER_UNDONE)]
    return any(f.code == finding.explained_by for f in shown)


def _of_symptom(finding: Finding, ruling: Ruling, found: Investigation, heads: dict[str, Finding]) -> Finding:
    if ruling.excused:
        message = f"{_seen(ruling)}. {found.earned}"
        return replace(finding, severity="info", explained_by=None, confidence="high", message=message)
    if ruling.follows is not None:
        return replace(finding, explained_by=ruling.follows.code)
    if ruling.root is None and found.rate is not None and finding.explained_by == found.rate.code:
        return finding
    if ruling.root is None:
        return _not_established(finding, ruling, found)
    head = heads.get(ruling.root.trial.cause)
    if head is not None:
        return replace(finding, explained_by=head.code, message=_told(finding, ruling))
    return replace(
        finding, cause=ruling.root.trial.cause, explained_by=None, confidence="high", message=_told(finding, ruling)
    )


def _told(finding: Finding, ruling: Ruling) -> str:
    """The rule's own words where it blamed the same; what was seen and what undoing showed where it did not."""
    assert ruling.root is not None
    # GS302 says that the input does it and not the weights; by now it is known what does it.
    if finding.cause == ruling.root.trial.cause and finding.code != "GS302":
        return f"{finding.message} {undone(ruling)}"
    return f"{_seen(ruling)}. {_suspected_and_undone(ruling)}"


def _not_established(finding: Finding, ruling: Ruling, found: Investigation) -> Finding:
    """Without a share there is no cause; what the rule supposed is not repeated, unless it could not be tried, or steps have shown it."""
    if finding.cause not in TRIED or finding.cause in found.untried or harmful(finding):
        return finding
    if math.isnan(ruling.share):
        best = " Nothing that can be undone on a copy differs from its reference."
    else:
        best = f" Nothing that was undone went more than {max(0.0, 100 * ruling.share):.0f} % of the way back."
        best = f"{best[:-1]}: {ruling.nearest} did." if ruling.nearest else best
    ruled = f" Ruled out: {'; '.join(ruling.ruled_out)}." if ruling.ruled_out else ""
    return replace(
        finding, explained_by=None, confidence="medium", message=f"{_seen(ruling)}. Cause not established.{best}{ruled}"
    )


def _seen(ruling: Ruling) -> str:
    finding = ruling.symptom.finding
    where = finding.layer or "the model"
    return f"{where}: {SIGNALS[finding.signal].meaning} is {finding.value:.2g} (limit {finding.threshold:.2g})"


def _promoted(finding: Finding, rules: Sequence[Ruling]) -> Finding:
    """A finding about a cause that was shown: as severe as the worst symptom that it brings about."""
    own = [ruling for ruling in rules if ruling.cause == finding.cause]
    worst = "error" if any(r.symptom.finding.severity == "error" for r in own) else "warning"
    best = max(own, key=lambda r: r.share)
    if is_warning(finding):
        return replace(finding, confidence="high", explained_by=None, message=f"{finding.message} {undone(best)}")
    message = _suspected_and_undone(best)
    return replace(finding, severity=worst, confidence="high", explained_by=None, message=message)


def decided_causes(causes: Sequence[Cause], found: Investigation, loud: Collection[str]) -> tuple[Cause, ...]:
    """The causes with the status that undoing them has earned; order and the five stay.

    ``loud``: codes of the findings that are warnings or errors; information speaks for no cause.
    """
    rules = rulings(found)
    known = {cause.cause: cause for cause in causes}
    for name in {tried.trial.cause for tried in found.tried} - set(known):
        if any(ruling.cause == name for ruling in rules):
            known[name] = Cause(name, "absent", "")
    seen = {symptom.finding.code for symptom in found.symptoms}
    decided = {
        name: _cause(cause, found, rules, alone=seen >= (set(cause.codes) & set(loud) or set(cause.codes)))
        for name, cause in known.items()
    }
    return tuple(decided[name] for name in (*FIVE_CAUSES, *FURTHER_CAUSES) if name in decided)


def _cause(cause: Cause, found: Investigation, rules: Sequence[Ruling], alone: bool) -> Cause:
    """``alone``: every rule that speaks for the cause speaks of a symptom that was measured again."""
    own = [ruling for ruling in rules if ruling.cause == cause.cause]
    if own:
        best = max(own, key=lambda r: r.share)
        codes = tuple(sorted({*cause.codes, *(r.symptom.finding.code for r in own)}))
        reason = _suspected_and_undone(best)
        return replace(cause, status="root-cause", how="undone", share=best.share, reason=reason, codes=codes)
    if any(r.root is None and r.symptom.finding.cause == cause.cause and harmful(r.symptom.finding) for r in rules):
        return replace(cause, how="undone")
    with_root = next((r for r in rules if r.root is not None and r.cause and r.root.trial.also == cause.cause), None)
    if with_root is not None:
        reason = _suspected_and_undone(with_root)
        return replace(cause, status="contributing", how="undone", share=with_root.share, reason=reason)
    shares = [
        (share, tried, i)
        for tried in found.tried
        if tried.trial.cause == cause.cause
        for i, share in enumerate(tried.shares)
        if not math.isnan(share) and not rules[i].excused
    ]
    if not shares:
        return _without_trial(cause, found, rules, alone)
    share, tried, i = max(shares, key=lambda one: one[0])
    went = f"{_quantity(found.symptoms[i])} {found.before[i]:.2g} → {tried.after[i]:.2g}"
    words = f"{_capital(tried.trial.words)} on a copy: {went}, {100 * max(0.0, share):.0f} % of the way back"
    reason = f"{_capital(tried.trial.suspect)}. {words}"
    if share >= CONTRIBUTES:
        return replace(cause, status="contributing", how="undone", share=share, reason=f"{reason}.")
    if cause.status in ("root-cause", "contributing") and alone:
        status = "present" if not tried.trial.deviates else "absent"
        return replace(cause, status=status, how="undone", share=max(share, 0.0), reason=f"{reason}: ruled out.")
    return cause


def _without_trial(cause: Cause, found: Investigation, rules: Sequence[Ruling], alone: bool) -> Cause:
    """A cause that could be undone and gave no reason to be: everything about it is at its reference."""
    if cause.cause not in TRIED or cause.status not in ("root-cause", "contributing"):
        return cause
    by = [r for r in rules if r.symptom.finding.code in cause.codes]
    # What was undone of another cause takes all of its symptoms away.
    follows = all(ruling.cause is not None for ruling in by)
    if (cause.cause in found.untried and not follows) or not alone:
        return cause
    roots = ", ".join(dict.fromkeys(ruling.cause for ruling in by if ruling.cause is not None))
    if roots:
        what = by[0]
        return replace(cause, status="contributing", reason=f"{_seen(what)}. It follows from {roots}.", how="observed")
    return replace(
        cause, status="absent", how="undone", share=0.0,
        reason="Nothing about it differs from its reference, so there was nothing to undo; the cause of what was measured is not "
        "established.",
    )  # fmt: skip


def told(found: Investigation) -> Iterator[dict[str, object]]:
    """What was tried, for the JSON: one entry per suspect and measured signal."""
    for tried in found.tried:
        measured = {}
        for i, symptom in enumerate(found.symptoms):
            measured[symptom.goal.signal, symptom.goal.layer] = i
        for (signal, layer), i in measured.items():
            yield {
                "intervention": tried.trial.name,
                "cause": tried.trial.cause,
                "place": tried.trial.place,
                "signal": signal,
                "layer": layer,
                "before": found.before[i],
                "after": tried.after[i],
                "share": tried.shares[i],
            }
