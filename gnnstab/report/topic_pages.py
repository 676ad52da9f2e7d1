"""What one word of a report means: a rule, a cause, a fix, a signal, an event such as a NaN, or a term."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gnnstab.errors import UsageError, hint
from gnnstab.fixes import FIXES
from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.recommendation import recommend
from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, SIGNALS, Cause
from gnnstab.report._glossary import GLOSSARY
from gnnstab.report.console import printed
from gnnstab.report.rule_pages import labelled, rule_page
from gnnstab.rules.pages import brief
from gnnstab.rules.registry import rule_class, rule_classes

EVENTS = {"nan": "GS502", "inf": "GS502", "non-finite": "GS502", "overflow": "GS501"}
"""Words for what happened in a run → the rule that tells of it."""

_CAUSES = (*FIVE_CAUSES, *FURTHER_CAUSES)
_Line = tuple[str, str]


def topics() -> tuple[str, ...]:
    """Every word that `topic_page` knows."""
    rules = [name for rule in rule_classes() for name in (rule.code, rule.name)]
    return tuple(dict.fromkeys([*rules, *_CAUSES, *FIXES, *EVENTS, *SIGNALS, *GLOSSARY]))


def topic_page(name: str, *, verbose: bool = False, width: int = 80, color: str | None = None) -> str:
    """At most 15 lines about a word of `topics`; with ``verbose`` the whole page of a rule.

    Raises `UsageError` with the nearest words when there is none.
    """
    wanted = name.strip().lower()
    codes = {word: rule.code for rule in rule_classes() for word in (rule.code.lower(), rule.name)} | EVENTS
    if wanted in codes and verbose:
        return rule_page(codes[wanted], width=width, color=color)
    for known, lines in ((codes, _rule), (_CAUSES, _cause), (FIXES, _fix), (SIGNALS, _signal), (GLOSSARY, _word)):
        if wanted in known:
            return printed([labelled(lines(codes.get(wanted, wanted)))], width, color)
    near = hint(wanted, topics()) or hint(wanted.upper(), topics())
    raise UsageError(
        f"there is no rule, cause, fix, signal or word {name!r}; {near + ' ' if near else ''}`gnnstab rules` lists the rules"
    )


def _word(word: str) -> Iterator[_Line]:
    yield "Word", word
    yield "What", GLOSSARY[word]
    yield "More", "docs/reading-a-report.md goes through a report from top to bottom."


def _rule(code: str) -> Iterator[_Line]:
    rule = next(rule for rule in rule_classes() if rule.code == code)
    points = f", points to {rule.cause}" if rule.cause and rule.cause != rule.name else ""
    yield "Rule", f"{rule.code} {rule.name}{points}"
    yield from brief(code)
    if fixes := _fixes_of(rule.cause):
        yield "Fixes", f"{', '.join(fixes)}. gnnstab explain {fixes[0]} tells more."
    yield "More", f"gnnstab explain {code} -v shows the whole page: how it is measured, thresholds, when it is silent."


def _cause(cause: str) -> Iterator[_Line]:
    rules = [rule for rule in rule_classes() if rule.cause == cause]
    yield "Cause", f"{cause}: a report names it where a measurement shows it."
    yield "Rules", _list([f"{rule.code} {rule.name}" for rule in rules])
    if rules:
        yield from brief(rules[0].code)
    if fixes := _fixes_of(cause):
        yield "Fixes", ", ".join(fixes)


def _fix(name: str) -> Iterator[_Line]:
    fix = FIXES[name]
    yield "Fix", f"{name}: {fix.title}"
    yield "What", " ".join((fix.__doc__ or "").partition("\n\n")[0].split())
    yield "Against", _list(fix.causes)
    yield "Moves", f"{fix.signal}: {SIGNALS[fix.signal].meaning}" if fix.signal in SIGNALS else fix.signal
    yield "Costs", fix.cost
    if isinstance(fix, ByHand):
        yield "Judged", "by you: it is a change of your code or data that no copy can be given"
        return
    on, file = ("a copy with your weights", "CHECKPOINT ")
    if fix.on_fresh_weights:
        on, file = "fresh copies with and without it", ""
    yield "Judged", f"on {on}: gnnstab verify {file}--fix {name} --model pkg.mod:factory --batch FILE"


def _signal(name: str) -> Iterator[_Line]:
    kind = SIGNALS[name]
    yield "Signal", f"{name}{f', in {kind.unit}' if kind.unit else ''}"
    yield "What", f"{kind.meaning}."
    if kind.limits:
        limits = [f"{kind.worse} {getattr(rule_class(own.rule), own.field):g} ({own.rule})" for own in kind.limits]
        yield "Limits", f"{_list(dict.fromkeys(limits))}; other rules may read it, too."


def _fixes_of(cause: str) -> list[str]:
    """The fixes of a cause, the best first."""
    (told,) = recommend([Cause(cause, "root-cause", "")], [])
    named = [advice.fix for advice in told.fixes]
    return list(dict.fromkeys([*named, *(name for name, fix in FIXES.items() if cause and cause in fix.causes)]))


def _list(words: Sequence[str] | dict[str, None]) -> str:
    return ", ".join(words) or "none"
