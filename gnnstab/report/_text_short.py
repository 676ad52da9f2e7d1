"""The default terminal report: at most `MOST_LINES` lines, the verdict first and the summary last.

Everything that is left out here stands in the long report (``-v``). Code to paste is never wrapped and never cut: what does
not fit is named, with the command that shows it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.text import Text

from gnnstab.characters import counted
from gnnstab.fixes.text_edits import changed_lines
from gnnstab.records import Cause, Diagnosis, Finding
from gnnstab.report import escape, summary
from gnnstab.report._extremes import extremes
from gnnstab.report._glossary import HOW
from gnnstab.report.console import CAUSE, MUTED, RED, SEVERITY, STATE
from gnnstab.report.numbers import compared, number
from gnnstab.rules.event_place import event_place

MOST_LINES = 15
_LABEL = 9
"""Columns of the labels at the left."""

_MOST_CAUSES = 2
_REASON = 210
"""Characters of a cause's reason where room is scarce: its first clauses, three lines at 80 columns."""

_WHOLE, _CLAUSE = 560, 90
_NO_ROOM = "; -v shows its"


@dataclass(frozen=True, slots=True)
class _Line:
    """One entry: a label, its text, and whether the text is code."""

    label: str
    text: Text
    code: bool = False

    def rows(self, width: int) -> list[Text]:
        """The entry in lines of ``width`` columns, the label in front of the first."""
        body = self.text.split("\n") if self.code else _wrapped(self.text, width - _LABEL)
        labels = [self.label, *[""] * (len(body) - 1)]
        return [_unwrapped((f"{label:<{_LABEL}}", MUTED), part) for label, part in zip(labels, body, strict=True)]


def short(diagnosis: Diagnosis, width: int) -> RenderableType:
    """Verdict, where it began, root causes with the change as code, further findings, what was not seen, summary."""
    head, last = [_head(diagnosis, width)], [_last(diagnosis, width)]
    unseen = [line for entry in _unseen(diagnosis, width) for line in entry.rows(width)]
    room = MOST_LINES - len(head) - len(last) - len(unseen)
    tries = [_body(diagnosis, room, longest, width) for longest in (_WHOLE, _REASON, _CLAUSE)]
    # Code to paste matters more than the whole reason, and what was measured more than what follows from the cause.
    body = next((body for body, whole, _ in tries[:2] if whole), None) or next(
        (body for body, _, coded in tries[1:] if coded), tries[1][0]
    )
    return Group(*head, *body[:room], *unseen, *last)


def opening(diagnosis: Diagnosis, width: int) -> list[Text]:
    """The first lines of the long report: the verdict, and where a number first stopped being one."""
    event = next(_began(diagnosis), None)
    return [_head(diagnosis, width), *(event.rows(width) if event else [])]


def closing(diagnosis: Diagnosis, width: int) -> list[Text]:
    """The last line of the long report: all that was found, in as many lines as it takes."""
    word, rest = summary.verdict(diagnosis)
    return _wrapped(Text(f"{word}: {rest}", "bold"), width)


def _body(diagnosis: Diagnosis, room: int, longest: int, width: int) -> tuple[list[Text], bool, bool]:
    """Causes with reasons of at most ``longest`` characters, changes and findings; whether all of it has room, and whether the changes have."""
    body: list[Text] = []
    coded = True
    for entry in _began(diagnosis):
        body += entry.rows(width)
    if summary.state(diagnosis) in ("stable", "nothing-found") and (loss := summary.standing_loss(diagnosis)):
        body += _Line("loss", Text(loss)).rows(width)
    causes = summary.to_change(diagnosis)
    caused = any(cause.status == "root-cause" for cause in causes)
    went = [row for entry in _went(diagnosis, caused) for row in entry.rows(width)]
    room -= len(went)
    if not causes and (worst := _worst(diagnosis)) is not None:
        body += _found(worst, longest).rows(width)
    # Every root cause that the summary counts stands in a line of its own at least.
    rest = [_other_cause(cause, width) for cause in causes[_MOST_CAUSES:]][: max(room - len(body) - 4, 1)]
    room -= len(rest)
    for position, cause in enumerate(causes[:_MOST_CAUSES]):
        told = (_cause(cause, most).rows(width) for most in (longest, _REASON, _CLAUSE))
        body += next((rows for rows in told if len(rows) <= room - len(body)), [_other_cause(cause, width)])
        # The code of the first change matters more than what was found beside it; the summary counts that.
        left = room - len(body)
        change = _change(cause, left if position == 0 else min(5, left), width, first=position == 0)
        body += change if len(change) <= left else []
        coded = coded and len(change) <= left and not any(_NO_ROOM in line.plain for line in change)
    further = _further(diagnosis, MOST_LINES, width)
    whole = len(body) + len(further) <= room and coded
    body = [*body[:room], *rest, *went]
    room += len(went)
    return [*body, *(further if whole else _further(diagnosis, room + len(rest) - len(body), width))], whole, coded


def _other_cause(cause: Cause, width: int) -> Text:
    """``also     root cause feature-scale (GS406): change input-standardisation``."""
    best = summary.recommended(cause)
    tail = f": change {escape.name(best.fix)}" if best else ""
    known = f" ({' '.join(cause.codes)})" if cause.codes else ""
    text = Text.assemble((f"{'also':<{_LABEL}}", MUTED), f"{summary.verdict_words(cause.status)} ")
    text.append(cause.cause, f"bold {CAUSE[cause.status]}")
    room = max(width - cell_len(text.plain), 12)
    # The change matters more than the codes that name the cause.
    return _unwrapped(
        text, escape.ending(next((whole for whole in (known + tail, tail) if cell_len(whole) <= room), tail), room)
    )


def one_line(diagnosis: Diagnosis, width: int) -> Text:
    """Verdict, target and numbers in one line: what a passing check says."""
    word, rest = summary.verdict(diagnosis, short=True)
    unjudged, asked = summary.rules_by_status(diagnosis)["not-evaluable"], summary.options_to_pass(diagnosis)
    if summary.state(diagnosis) == "nothing-found" and asked:
        rest = f"{unjudged} of {counted(len(diagnosis.rules), 'check')} not run: pass {asked}"
    if beside := diagnosis.context.get("files_beside_count"):
        rest = f"{counted(beside, 'file')} not judged; {rest}"
    if hidden := len(diagnosis.suppressed):
        rest += f" ({counted(hidden, 'finding')} suppressed)"
    target = _file(diagnosis.target.path, width - len(word) - cell_len(rest) - 4)
    return _unwrapped((word, STATE[summary.state(diagnosis)]), f"  {target}: {rest}")


def _fit(text: str, cells: int) -> str:
    """A name in at most so many columns, but never in fewer than 12; wide characters take two."""
    most = max(12, cells)
    shorter = (escape.name(text, longest) for longest in range(most, 11, -1))
    return next((shown for shown in shorter if cell_len(shown) <= most), escape.name(text, 12))


def _file(path: str, cells: int) -> str:
    """A path in at most so many columns; its last part stays whole, which a log is searched for."""
    folder, _, name = path.rpartition("/")
    fitting, name = _fit(path, cells), escape.name(name)
    return fitting if fitting.endswith(name) else f"…/{name}" if folder else name


def _unwrapped(*parts: str | tuple[str, str] | Text) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ignore")


def _head(diagnosis: Diagnosis, width: int) -> Text:
    word, _ = summary.verdict(diagnosis)
    precision = escape.name(str(diagnosis.context.get("precision", "")), 8)
    about = f" ({diagnosis.target.kind}{', ' if precision else ''}{precision})"
    target = diagnosis.target
    path = "this run" if (target.kind, target.path) == ("trace", "memory") else target.path
    path = _fit(path, width - len(word) - 2 - cell_len(about))
    return _unwrapped((word, STATE[summary.state(diagnosis)]), "  ", (path + about, MUTED))


def _last(diagnosis: Diagnosis, width: int) -> Text:
    """The summary: what was found, in how many layers, and how to see more."""
    if summary.state(diagnosis) in ("stable", "nothing-found"):
        calm = summary.calm(diagnosis)
        codes = " ".join(dict.fromkeys(finding.code for finding in summary.in_reading_order(diagnosis)))
        return _fitting(
            [f"{calm}; -v shows {codes}", f"{calm}; -v shows all", calm] if codes else [calm], width, "bold"
        )
    whole, short = summary.verdict(diagnosis)[1], summary.verdict(diagnosis, short=True)[1]
    found = summary.severities(diagnosis.findings)
    amounts = f"{found}: {counted(len(diagnosis.root_causes()), 'root cause')}; -v shows all"
    return _fitting([f"{whole}; -v shows all", f"{short}; -v shows all", whole, short, amounts], width, "bold")


def _fitting(texts: Sequence[str], width: int, style: str = "") -> Text:
    """The first of the texts that has room in a line; where none has, the last one as far as it goes."""
    chosen = next((text for text in texts if cell_len(text) <= width), escape.ending(texts[-1], width))
    return _unwrapped((chosen, style))


def _began(diagnosis: Diagnosis) -> Iterator[_Line]:
    """Where a number first stopped being one."""
    if (event := summary.first_non_finite(diagnosis)) is not None:
        place = escape.sentence(f"first non-finite value: {event_place(event, diagnosis.layers)}", 60, 180)
        yield _Line("began", Text(place, f"bold {RED}"))


def _went(diagnosis: Diagnosis, caused: bool) -> Iterator[_Line]:
    """What was far worse during the run than at its end; beside a root cause what is still out of health."""
    if told := extremes(diagnosis, healed=not caused):
        verb = "was" if len(told) == 2 else "were"
        more = (
            f"; {counted(len(told) - 1, 'more number')} {verb} far worse than at the end (-v)" if len(told) > 1 else ""
        )
        yield _Line("run", Text(escape.sentence(told[0], 60, 180) + more))


def _worst(diagnosis: Diagnosis) -> Finding | None:
    """What to read first where no cause is known."""
    return next((f for f in summary.in_reading_order(diagnosis) if f.severity != "info"), None)


def _found(finding: Finding, longest: int) -> _Line:
    """What a finding says and advises."""
    said = _without_place(finding.message)
    what = (f"{finding.code} {escape.name(finding.name)}", f"bold {SEVERITY[finding.severity]}")
    return _Line("found", Text.assemble(what, f": {summary.beginning(escape.sentence(said), longest)}"))


def _without_place(message: str) -> str:
    """A message without where a number first stopped being one, which stands above it."""
    return re.sub(r"(?:^|; )first non-finite value .*?\.(?= |$)", ".", message).lstrip(". ") or message


def _cause(cause: Cause, longest: int) -> _Line:
    known = ", ".join(part for part in (" ".join(cause.codes), HOW.get(cause.how)) if part)
    reason = summary.beginning(escape.sentence(_without_place(cause.reason)), longest)
    # The last line names the root; what is none is called by its standing, as in every other place.
    standing = "" if cause.status == "root-cause" else f"{summary.verdict_words(cause.status)} "
    words = ((cause.cause, f"bold {CAUSE[cause.status]}"), f" ({known}): " if known else ": ", reason)
    return _Line("cause", Text.assemble(standing, *words))


def _change(cause: Cause, room: int, width: int, *, first: bool) -> list[Text]:
    """The best fix and its code; the name alone where the code does not fit. How to test is said with the first."""
    best = summary.recommended(cause)
    if best is None:
        failed = escape.sentence(", ".join(fix.fix for fix in cause.fixes))
        return _Line("change", Text(f"none to recommend; measured to fail: {failed}")).rows(width) if failed else []
    # Why trying it has decided nothing; the rate that this holds for is said with it.
    why, compared, _ = best.note.partition(" Compared:")
    open_yet = why.rstrip(".") if best.verdict == "inconclusive" and compared else ""
    at = "" if open_yet else summary.rate(best)
    named = Text.assemble((escape.name(best.fix), "bold"), f" ({summary.verdict_words(best.verdict)}{at}")
    if best.before is not None or best.after is not None:
        named.append(f": {escape.name(best.signal)} {number(best.before)} → {number(best.after)}")
    elif first and (test := summary.how_to_test([best])):
        named.append(f"; {test[1]} tests it")
    if open_yet:
        named.append(f": {escape.sentence(open_yet)}")
    named.append(")")
    code = escape.code(best.change)
    whole, parts = len(code.splitlines()), changed_lines(code)
    if whole + 1 > room and 0 < len(parts) < room:
        code = "\n".join(parts)
        named.append("; -v shows it as a patch", style=MUTED)
    elif whole + 1 > room:
        named.append(f"{_NO_ROOM} {whole} lines of code", style=MUTED)
        return _Line("change", named).rows(width)
    return [*_Line("change", named).rows(width), *_Line("", Text(code), code=True).rows(width)]


def _further(diagnosis: Diagnosis, room: int, width: int) -> list[Text]:
    """One line per rule whose findings no shown cause has told yet; the last line counts the rest."""
    causes = summary.to_change(diagnosis)
    told = {code for cause in causes for code in cause.codes}
    worst = None if causes else _worst(diagnosis)
    rules: dict[str, list[Finding]] = {}
    for finding in summary.in_reading_order(diagnosis):
        # With many causes their lines name the rules; what follows from which is told beside few.
        alone = finding is worst and sum(f.code == finding.code for f in diagnosis.findings) == 1
        if (
            finding.severity != "info"
            and not alone
            and not (finding.code in told and (finding.explained_by is None or len(causes) > _MOST_CAUSES))
        ):
            rules.setdefault(finding.code, []).append(finding)
    groups = list(rules.values())
    shown = groups if len(groups) <= room else groups[: max(room - 1, 0)]
    lines = [_also(group, width) for group in shown]
    if len(shown) < len(groups) and room > 0:
        left = groups[len(shown) :]
        what = f"{counted(len(left), 'more rule')}: {' '.join(group[0].code for group in left)}"
        lines += _Line("also", Text(escape.ending(what, width - _LABEL))).rows(width)
    return lines


def _also(group: Sequence[Finding], width: int) -> Text:
    """``warning GS302 attention-saturated-by-input, gnn1: attention.entropy 0.229 < 0.35, from GS401``: no number without its signal."""
    first, times = group[0], f" ×{len(group)}" if len(group) > 1 else ""
    origin = f", from {escape.name(first.explained_by)}" if first.explained_by else ""
    known = math.isfinite(first.threshold) and not math.isnan(first.value)
    values = [f": {first.signal} {compared(first.value, first.threshold, unit)}" for unit in (first.unit, "")] * known
    rule, place = f" {first.code} {escape.name(first.name)}{times}", escape.name(first.layer or "the model")
    room = width - _LABEL - len(first.severity)
    texts = [*(f"{rule}, {place}{told}{origin}" for told in values),
             *(f" {first.code}{times}, {place}{told}{origin}" for told in values),
             f"{rule}, {place}{origin}", f"{rule}{origin}", rule, f" {first.code}{times}{origin}"]  # fmt: skip
    label = Text(f"{'also':<{_LABEL}}", MUTED)
    return _unwrapped(label, (first.severity, SEVERITY[first.severity]), _fitting(texts, room))


def _unseen(diagnosis: Diagnosis, width: int) -> Iterator[_Line]:
    """What the verdict does not cover, in one line."""
    parts = [*summary.not_covered(diagnosis), *_left_out(diagnosis)]
    if unjudged := summary.rules_by_status(diagnosis)["not-evaluable"]:
        checks = (
            f"{counted(unjudged, 'check')} not run"
            if parts
            else f"{unjudged} of {counted(len(diagnosis.rules), 'check')}"
        )
        room = width - _LABEL - cell_len("; ".join([*parts, ""]))
        told = [f"{checks}{why}" for why in _lacking(diagnosis)]
        parts.append(next((text for text in told if cell_len(text) <= room), told[-1]))
        label = "not seen" if len(parts) > 1 else "not run"
        yield _Line(label, Text(escape.shorten("; ".join(parts), 2 * (width - _LABEL) - 12)))
    elif parts:
        yield _Line("not seen", Text(escape.shorten("; ".join(parts), 2 * (width - _LABEL) - 12)))


def _left_out(diagnosis: Diagnosis) -> list[str]:
    """The looks on copies that could not be had, with the beginning of the first reason."""
    reasons = [note.partition(": ")[2] for note in diagnosis.target.notes if note.startswith("some looks on copies")]
    return [f"looks on copies, left out ({summary.beginning(escape.sentence(reasons[0]), 60)})"] if reasons else []


_NEEDS = {
    "monitor.loss(loss)": r"no loss is known",
    "several graphs": r"several graphs",
    "a validation loss": r"validation loss",
    "the optimizer": r"pass\b.*\boptimizer",
    "a recorded run": r"record a run",
    "more steps": r"fewer steps",
    "a batch": r"\bbatch\b|\bdata\b|\bgraph\b",
    "a checkpoint": r"checkpoint",
    "the model": r"pass the model\b|--model",
}
"""What a check may lack → how its reason says so; the first that matches counts."""

_BESIDE = ("a batch", "a checkpoint", "the model")
_AT_HAND = ("monitor.loss(loss)", "the optimizer")


def _lacking(diagnosis: Diagnosis) -> list[str]:
    """What would let the checks run that could not, the longest way to say it first."""
    if summary.state(diagnosis) == "nothing-found" and (asked := summary.to_pass(diagnosis)):
        return [f": pass {asked}", f": pass {summary.options_to_pass(diagnosis)}"]
    reasons = [rule.reason for rule in diagnosis.rules if rule.status == "not-evaluable"]
    found = [next((need for need, said in _NEEDS.items() if re.search(said, reason)), "") for reason in reasons]
    if (
        diagnosis.target.kind == "trace"
    ):  # It takes no model and no batch beside it: those make a diagnosis of their own.
        found = ["diagnose(model)" if need in _BESIDE else need for need in found]
    given = {"a batch"} if any(signal.source == "batch" for signal in diagnosis.signals) else set()
    given |= {"a checkpoint"} if diagnosis.target.kind == "checkpoint" else set()
    found = [need for need in found if need not in given]
    # A word in the loop comes before what takes another command.
    needs = sorted(
        (need for need, _ in Counter(filter(None, found)).most_common()), key=lambda need: need not in _AT_HAND
    )
    listed = [", ".join(needs[:most]) + (" …" if len(needs) > most else "") for most in (3, 2, 1) if needs]
    return [*(f": they need {words} (-v)" for words in listed), " (-v tells why)"]


def _wrapped(text: Text, width: int) -> list[Text]:
    return list(text.wrap(Console(width=width, _environ={}), width))
