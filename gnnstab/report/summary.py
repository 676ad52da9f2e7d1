"""What every report says first: the verdict, and in which order things should be read.

Formats differ in how they write; what comes first is decided here, once.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from gnnstab.characters import counted
from gnnstab.records import FIVE_CAUSES, SEVERITIES, VERDICTS, Cause, Diagnosis, Event, Finding, FixAdvice, Signal
from gnnstab.records.findings import NOT_UNDONE
from gnnstab.records.vocabulary import OPTIMIZER_UNDONE
from gnnstab.report import escape
from gnnstab.report._glossary import HOW
from gnnstab.report._not_covered import not_covered as not_covered
from gnnstab.report.numbers import number
from gnnstab.rules.run_losses import stood_still

CAUSE_ORDER = ("root-cause", "contributing", "present", "not-evaluable", "absent")
FIX_ORDER = ("confirmed", "not-tested", "inconclusive", "no-effect", "made-worse")
"""A proven fix before an untested one; what was measured to fail comes last."""

RECOMMENDED = ("confirmed", "not-tested", "inconclusive")
"""Verdicts with which a fix is still recommended."""


def state(diagnosis: Diagnosis) -> str:
    """``unstable`` (an error or warning about the model), ``stable``, ``nothing-found`` or ``not-evaluable``.

    ``nothing-found`` is a calm verdict that does not cover everything (`not_covered`). A warning about the observation
    itself (GS9xx) makes a model neither stable nor unstable.
    """
    warned = diagnosis.at_least("warning")
    if any(not finding.code.startswith("GS9") for finding in warned):
        return "unstable"
    if warned or diagnosis.nothing_evaluable:
        return "not-evaluable"
    return "nothing-found" if not_covered(diagnosis) else "stable"


WORDS = {
    "unstable": "UNSTABLE",
    "stable": "STABLE",
    "nothing-found": "NOTHING FOUND",
    "not-evaluable": "NOT EVALUABLE",
}
"""State → the word that every face prints for it."""


def verdict(diagnosis: Diagnosis, *, short: bool = False) -> tuple[str, str]:
    """The word of `WORDS` and the rest of the first line."""
    kind, where = state(diagnosis), _layers(diagnosis, short)
    if kind == "not-evaluable" and diagnosis.nothing_evaluable:
        return WORDS[kind], _nothing_judged(diagnosis)
    if kind == "not-evaluable":
        blind = severities(diagnosis.at_least("warning"))
        return WORDS[kind], f"{blind} about what was not seen; {_calm(diagnosis)} in {where}"
    if kind == "unstable":
        return WORDS[kind], f"{severities(diagnosis.findings)} in {where}{_why(diagnosis, short)}"
    loss = standing_loss(diagnosis)
    said = f"the loss {loss}; {calm(diagnosis, short=short)}" if loss else calm(diagnosis, short=short)
    return WORDS[kind], said + ("" if short else _limits(diagnosis))


def calm(diagnosis: Diagnosis, *, short: bool = False) -> str:
    """``nothing to fix, 2 notes in 3 TransformerConv layers``."""
    return f"{_calm(diagnosis)} in {_layers(diagnosis, short)}"


def standing_loss(diagnosis: Diagnosis) -> str:
    """``hardly fell: 1.39 → 1.38 in 45 steps; …`` of a run that has learned next to nothing, and what was tried; else empty."""
    if not (still := stood_still(diagnosis.series)):
        return ""
    first, last, steps = still
    fell = f"{'hardly fell' if last < first else 'did not fall'}: {number(first)} → {number(last)} in {steps} steps"
    if any(signal.name == OPTIMIZER_UNDONE for signal in diagnosis.signals):
        return f"{fell}; steps on copies do not show why: cause not established"
    return f"{fell}; cause not established: no steps were tried on copies, which takes Monitor(optimizer=…, loss=fn)"


def failures(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Why a check of this target fails though no finding says so: files that could not be read, or nothing that could be judged."""
    unread = tuple(str(note) for note in diagnosis.context.get("left_out", ()))
    unjudged = diagnosis.nothing_evaluable and not diagnosis.at_least("warning") and diagnosis.rules
    return (*unread, _nothing_judged(diagnosis)) if unjudged else unread


def severities(findings: Sequence[Finding]) -> str:
    """``2 errors, 1 warning``; worst first, zero counts left out, ``no findings`` for none."""
    counts = Counter(f.severity for f in findings)
    nouns = {"error": "error", "warning": "warning", "info": "note"}
    return ", ".join(counted(counts[s], nouns[s]) for s in reversed(SEVERITIES) if counts[s]) or "no findings"


def in_reading_order(diagnosis: Diagnosis) -> tuple[Finding, ...]:
    """Findings by what to do first: those of root causes, then by severity; what follows from another comes after it."""
    roots = {code for cause in diagnosis.root_causes() for code in cause.codes}
    names = {cause.cause for cause in diagnosis.root_causes()}
    position = {layer.name: layer.position for layer in diagnosis.layers}

    def key(finding: Finding) -> tuple[object, ...]:
        return (
            not (finding.cause in names and finding.explained_by is None),
            -SEVERITIES.index(finding.severity),
            finding.explained_by is not None,
            finding.code not in roots,
            finding.code,
            position.get(finding.layer or "", -1),
            finding.layer or "",
            -1 if finding.head is None else finding.head,
            -1 if finding.step is None else finding.step,
            finding.signal,
        )

    return tuple(sorted(diagnosis.findings, key=key))


def where(finding: Finding, diagnosis: Diagnosis | None = None) -> str:
    """``layer, head 0, step 1200``, or ``the model`` for a finding without a layer.

    With the diagnosis, a finding about all heads of a layer also names the worst of them.
    """
    parts = [escape.name(finding.layer) if finding.layer is not None else "the model"]
    if finding.head is not None:
        parts.append(f"head {finding.head}")
    elif diagnosis is not None and (heads := heads_of(diagnosis, finding)):
        parts.append(heads)
    if finding.step is not None:
        parts.append(f"step {finding.step}")
    return ", ".join(parts)


def heads_of(diagnosis: Diagnosis, finding: Finding) -> str:
    """``worst head 2`` where the value is that head's; ``all heads (worst head 2: 0.148)`` where it is a mean over them."""
    worst = worst_head(diagnosis, finding)
    if worst is None:
        return ""
    own, same = number(worst.value), not math.isfinite(finding.value) or number(worst.value) == number(finding.value)
    return f"worst head {worst.head}" if same else f"all heads (worst head {worst.head}: {own})"


def worst_head(diagnosis: Diagnosis, finding: Finding) -> Signal | None:
    """The signal of the head that is furthest on the wrong side, or None when heads were not measured."""
    if finding.head is not None or finding.layer is None:
        return None
    same = [s for s in diagnosis.signals if (s.name, s.layer) == (finding.signal, finding.layer)]
    same = [s for s in same if s.head is not None and not math.isnan(s.value)]
    if len(same) < 2:
        return None
    sign = 1 if finding.value < finding.threshold else -1
    return min(same, key=lambda s: (sign * s.value, s.head or 0))


def first_non_finite(diagnosis: Diagnosis) -> Event | None:
    """The earliest event of a non-finite value, the explained one where there is one, or None."""
    broken = [event for event in diagnosis.events if event.kind == "non-finite"]
    # Of the events of one step the one that knows the operation says where it was, then one that came later and knew more.
    known = ("operation", "refines")
    return min(broken, key=lambda event: (event.step, *(not event.detail.get(what) for what in known)), default=None)


def to_change(diagnosis: Diagnosis) -> tuple[Cause, ...]:
    """The causes to treat, what was shown before what merely fits: root causes, or the contributing ones where none is known."""
    contributing = tuple(cause for cause in diagnosis.causes if cause.status == "contributing")
    return diagnosis.root_causes() or tuple(sorted(contributing, key=lambda cause: cause.how in NOT_UNDONE))


def fixes_in_order(cause: Cause) -> tuple[FixAdvice, ...]:
    """The fixes of a cause, the proven first and those measured to fail last."""
    return tuple(sorted(cause.fixes, key=lambda fix: FIX_ORDER.index(fix.verdict) if fix.verdict in VERDICTS else 9))


def offered(cause: Cause) -> tuple[FixAdvice, ...]:
    """The fixes of a cause that a symptom points to, and those that were tried; nothing is offered against a mere setting."""
    points = cause.status in ("root-cause", "contributing")
    return tuple(fix for fix in fixes_in_order(cause) if points or fix.verdict != "not-tested")


def recommended(cause: Cause) -> FixAdvice | None:
    """The fix to try first, or None when none is known or all were measured to fail."""
    return next((fix for fix in fixes_in_order(cause) if fix.verdict in RECOMMENDED), None)


def to_try(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Fixes of the causes to treat that can be tried on a copy, as `gnnstab.verify` takes them: ``qk-clip:limit=4``."""
    found: dict[str, None] = {}
    for cause in to_change(diagnosis):
        for fix in fixes_in_order(cause):
            tried = re.search(rf"verify --fix {re.escape(fix.fix)}((?: --option [^\s,]+)*)", fix.note)
            if tried and fix.verdict in RECOMMENDED:
                options = ",".join(tried[1].replace("--option", "").split())
                found[f"{fix.fix}:{options}" if options else fix.fix] = None
    return tuple(found)


def treated(diagnosis: Diagnosis) -> tuple[Cause, ...]:
    """The causes under "What to change first": `to_change` of a network in which something is wrong."""
    return to_change(diagnosis) if state(diagnosis) == "unstable" else ()


def standing(cause: Cause) -> str:
    """``root cause, undone on a copy``: what a cause is, and how that is known."""
    return ", ".join(filter(None, (verdict_words(cause.status), HOW.get(cause.how))))


_UNTESTED = re.compile(r"(?:; )?not tested: (.+?), or (\S*diagnose\b.+)$")


def note(fix: FixAdvice) -> str:
    """What is known about a fix beside its verdict; how to test it is said once for all of them, by `how_to_test`."""
    return _UNTESTED.sub("", fix.note)


def rate(fix: FixAdvice) -> str:
    """`` at learning rate 0.001``, for which the verdict holds; empty where nothing was trained."""
    found = (
        re.search(r" ?at learning rate [\d.e+-]+(?: in place of [\d.e+-]+)?", fix.note)
        if fix.verdict != "not-tested"
        else None
    )
    return f" {found[0].strip()}" if found else ""


def how_to_test(fixes: Iterable[FixAdvice]) -> tuple[str, str] | None:
    """The call that tests the first of the untested fixes, and the one that tests all; None where none can be tested."""
    found = (_UNTESTED.search(fix.note) for fix in fixes if fix.verdict == "not-tested")
    return next(((match[1], match[2]) for match in found if match), None)


def whose_weights(test: tuple[str, str]) -> str:
    """What the file is that a call of `how_to_test` asks for, as a sentence behind it; empty where it asks for none."""
    return " CHECKPOINT holds the weights of the run." if "CHECKPOINT" in test[0] else ""


def unsuspected(diagnosis: Diagnosis) -> tuple[Cause, ...]:
    """Of a run that an event explains, the causes to which no symptom points: there is nothing to do about them."""
    seen = any(cause.how == "observed" for cause in diagnosis.root_causes())
    explained = seen and first_non_finite(diagnosis) is not None  # how the network is set up explains nothing then
    return tuple(c for c in diagnosis.causes if explained and c.status not in ("root-cause", "contributing"))


def by_weight(diagnosis: Diagnosis) -> list[Cause]:
    """The causes: `Diagnosis.root_causes`, then contributing ones, then what is so and does nothing."""
    later = sorted(diagnosis.causes, key=lambda cause: CAUSE_ORDER.index(cause.status))
    return [*diagnosis.root_causes(), *(cause for cause in later if cause.status != "root-cause")]


def told(diagnosis: Diagnosis) -> tuple[Cause, ...]:
    """The causes that a table lists, `by_weight`: without those to which nothing points, and without further ones whose rules could not judge."""
    quiet = unsuspected(diagnosis)
    return tuple(
        cause
        for cause in by_weight(diagnosis)
        if cause not in quiet and (cause.status != "not-evaluable" or cause.cause in FIVE_CAUSES)
    )


def alike(diagnosis: Diagnosis) -> list[list[Finding]]:
    """The findings in reading order, those together that say the same of several layers or heads."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    times = Counter(finding.message for finding in diagnosis.findings)
    for finding in in_reading_order(diagnosis):
        said = finding.message
        said = re.sub(r"\d[\d.,e+-]*", "", said if times[said] > 1 else said.replace(finding.layer or " ", " "))
        groups.setdefault((finding.code, finding.severity, finding.explained_by, said), []).append(finding)
    return list(groups.values())


class Told:
    """What a report has said already, sentence by sentence: nothing is said twice."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def new(self, text: str) -> str:
        """``text`` without the sentences that were told before; empty when all were."""
        kept = [part for part in re.split(r"(?<=[.!?])\s+", text) if not self.before(part)]
        shown = " ".join(kept)
        return shown[:1].upper() + shown[1:] if kept and not text.startswith(kept[0]) else shown

    def before(self, sentence: str) -> bool:
        """True when this was told before; from now on it was."""
        key = sentence.strip(" .").casefold()
        known = key in self._said and not key.startswith("it ")  # "It follows from …" is about another thing each time
        self._said.add(key)
        return known


def beginning(text: str, longest: int = 140) -> str:
    """The first clauses of a reason, for tables that stand beside its full text."""
    if len(text) <= longest:
        return text
    clauses = re.split(r"(?<=[;.:]) ", text)
    while len(clauses) > 1 and (len(" ".join(clauses)) > longest or re.search(r"\D:$", clauses[-1])):
        clauses.pop()  # What announces something is not the end of what is told; a number before a remark is.
    short = " ".join(clauses)
    # A first clause that is a mere name tells nothing: then the words count.
    if longest // 3 < len(short) <= longest:
        return f"{short.rstrip(';:')} …"
    return f"{text[:longest].rpartition(' ')[0].rstrip(';:,')} …"


def verdict_words(verdict: str) -> str:
    """``not tested`` for ``not-tested``."""
    return verdict.replace("-", " ")


def rules_by_status(diagnosis: Diagnosis) -> Counter[str]:
    """Number of rules per status."""
    return Counter(rule.status for rule in diagnosis.rules)


def _layers(diagnosis: Diagnosis, short: bool) -> str:
    kinds = {layer.kind for layer in diagnosis.layers if layer.attention}
    kind = escape.name(next(iter(kinds))) if len(kinds) == 1 else "attention"
    noun, expected = "layer" if short else f"{kind} layer", diagnosis.coverage.layers_expected
    seen = diagnosis.coverage.layers_observed
    return counted(seen, noun) if seen or not expected else f"none of {counted(expected, noun)}"


def _why(diagnosis: Diagnosis, short: bool) -> str:
    found = to_change(diagnosis)
    roots = [cause.cause for cause in found if cause.status == "root-cause"]
    if not roots:
        named = f"contributing {', '.join(cause.cause for cause in found)}" if found else ""
        return f": {named}" if named and short else f": cause not established{f', {named}' if named else ''}"
    return f": root cause {roots[0]}" if len(roots) == 1 else f": root causes {', '.join(roots)}"


def _calm(diagnosis: Diagnosis) -> str:
    notes = sum(finding.severity == "info" for finding in diagnosis.findings)
    known = any(item.finding.severity != "info" for item in diagnosis.suppressed)
    word = "nothing new" if known else "nothing to fix seen" if not_covered(diagnosis) else "nothing to fix"
    if standing_loss(diagnosis):
        word = word.replace("nothing", "nothing else")
    return word if not notes else f"{word}, {counted(notes, 'note')}"


def to_pass(diagnosis: Diagnosis) -> str:
    """What most of the rules that could not be judged ask for, ``--model pkg.mod:factory --batch FILE``; may be empty."""
    reasons = (rule.reason for rule in diagnosis.rules if rule.status == "not-evaluable")
    found = (re.search(r"; pass ((?:--|\w+=).+?)(?: to |$)", reason) for reason in reasons)
    asked = Counter(match[1] for match in found if match)
    return asked.most_common(1)[0][0] if asked else ""


def options_to_pass(diagnosis: Diagnosis) -> str:
    """The same without examples of values: ``--model --batch``, ``model= batch=``; may be empty."""
    return " ".join(re.findall(r"--\w+|\b\w+=", to_pass(diagnosis)))


def _limits(diagnosis: Diagnosis) -> str:
    """What a calm verdict does not cover, in brackets: a reader must not take it for more than it is."""
    unjudged, parts = rules_by_status(diagnosis)["not-evaluable"], not_covered(diagnosis)
    told = [f"not seen: {'; '.join(parts)}"] if parts else []
    told += [f"{counted(unjudged, 'rule')} not evaluable"] if unjudged else []
    return f" ({'; '.join(told)})" if told else ""


def _nothing_judged(diagnosis: Diagnosis) -> str:
    if diagnosis.coverage.layers_observed:
        return "no rule could be judged with what was given"
    unread = diagnosis.context.get("left_out")
    if unread and not diagnosis.rules:  # No rule was asked of what has no diagnosis.
        return escape.sentence(str(unread[0]).removeprefix("left out ").removeprefix(f"{diagnosis.target.path}: "))
    if diagnosis.target.kind == "trace" and diagnosis.context.get("steps") == 0:
        entered = not any("was not entered" in note for note in diagnosis.target.notes)
        yet = " yet" if entered else " yet: use `with Monitor(...) as monitor:`"
        return f"nothing was recorded{'' if diagnosis.context.get('closed') else yet}"
    expected = diagnosis.coverage.layers_expected
    if diagnosis.target.kind == "checkpoint":
        asked = f"; pass {options}" if (options := options_to_pass(diagnosis)) else ""
        hidden = f"weights alone do not show {counted(expected, 'layer')}"
        return (hidden if expected else "no attention recognised in the weights") + asked
    if expected:
        return f"none of {counted(expected, 'attention layer')} was seen"
    # What was looked for and not found is no proof that there is none.
    seen = ", ".join(map(escape.name, diagnosis.context.get("normalising", ())))
    return f"no attention was recognised; {'' if seen else 'no '}softmax-like normalisation seen{f' in {seen}' if seen else ''}"
