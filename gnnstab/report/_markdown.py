"""The report for people in a browser: Markdown for a job summary, a pull request or a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from gnnstab.characters import counted
from gnnstab.records import Cause, Diagnosis, Finding
from gnnstab.report import escape, summary
from gnnstab.report._extremes import extremes
from gnnstab.report.numbers import measured, number
from gnnstab.report.summary import Told
from gnnstab.rules.event_place import event_place

MOST_ROWS = 8
"""Rows of findings, and lines of each list below them: the whole fits into 2 000 tokens; JSON and SARIF carry every finding."""

_MARKS = {"error": "❌", "warning": "⚠️", "info": "ℹ️"}
_STATES = {"unstable": "❌", "stable": "✅", "nothing-found": "☑️", "not-evaluable": "⚠️"}


def render(diagnosis: Diagnosis) -> str:
    """The report as GitHub-flavoured Markdown; all text of the target is escaped."""
    sections = (_head, _changes, _causes, _findings, _advice, _coverage)
    told = summary.Told()
    return "\n".join(line for section in sections for line in section(diagnosis, told)) + "\n"


def render_many(diagnoses: Sequence[Diagnosis]) -> str:
    """The reports one after another."""
    return "\n".join(render(diagnosis) for diagnosis in diagnoses)


def _head(diagnosis: Diagnosis, _: Told) -> Iterator[str]:
    word, rest = summary.verdict(diagnosis)
    target = f"{text(diagnosis.target.kind.capitalize())} {span(diagnosis.target.path, 200)}"
    yield from (f"## {_STATES[summary.state(diagnosis)]} gnnstab: {word}", "", f"**{text(rest)}**", "", target)
    if (event := summary.first_non_finite(diagnosis)) is not None:
        yield from ("", f"**First non-finite value:** {text(event_place(event, diagnosis.layers))}")


def _changes(diagnosis: Diagnosis, told: Told) -> Iterator[str]:
    causes = summary.treated(diagnosis)
    if causes:
        yield from _heading("What to change first")
    for position, cause in enumerate(causes, start=1):
        yield f"{position}. **{text(cause.cause)}** ({summary.standing(cause)}): {text(told.new(cause.reason)) or 'as above'}"
        fix = summary.recommended(cause)
        if fix is not None:
            line = f"   Fix **{text(fix.fix)}**: {summary.verdict_words(fix.verdict)}"
            if fix.before is not None:
                line += f", {text(fix.signal)} {number(fix.before)} → {number(fix.after)}"
            if note := summary.note(fix):
                line += f" ({text(note)})"
            repeated = told.before(fix.change)
            yield from ("", line + ("; the change stands above" if repeated else ""), "")
            if not repeated:
                yield from (f"   {line}" for line in block(fix.change))
                yield ""
    if test := summary.how_to_test(fix for cause in causes for fix in cause.fixes):
        yield f"{span(test[0], 200)} tests one fix, {span(test[1], 80)} all of them.{summary.whose_weights(test)}"


def _causes(diagnosis: Diagnosis, told: Told) -> Iterator[str]:
    yield from _heading("Causes")
    above = summary.treated(diagnosis)
    quiet = summary.unsuspected(diagnosis)
    rows = (_cause(cause, cause in above, told) for cause in summary.told(diagnosis))
    yield from _table(("Cause", "Status", "Evidence or reason", "Fix: verdict"), rows)
    if quiet:
        yield from ("", f"Nothing in this run points to {text(', '.join(cause.cause for cause in quiet))}.")


def _cause(cause: Cause, above: bool, told: Told) -> tuple[str, ...]:
    status = summary.verdict_words(cause.status)
    fixes = (f"{text(fix.fix)}: {summary.verdict_words(fix.verdict)}" for fix in summary.offered(cause))
    return (
        cause.cause,
        f"**{status}**" if cause.status == "root-cause" else status,
        "as above" if above else text(told.new(cause.reason)) or "as above",
        "<br>".join(fixes) or "–",
    )


def _findings(diagnosis: Diagnosis, told: Told) -> Iterator[str]:
    groups = summary.alike(diagnosis)
    if not groups:
        return
    yield from _heading(f"Findings: {summary.severities([finding for group in groups for finding in group])}")
    rows = (_finding(diagnosis, group, told.new(group[0].message)) for group in groups[:MOST_ROWS])
    yield from _table(("", "Rule", "Where", "Measured", "What to do"), rows)
    if left := sum(map(len, groups[MOST_ROWS:])):
        yield from ("", f"And {counted(left, 'more finding')}; the JSON and SARIF reports list all.")


def _finding(diagnosis: Diagnosis, group: Sequence[Finding], message: str) -> tuple[str, ...]:
    """One row for findings that say the same, by the place of the worst."""
    finding = group[0]
    where = span(finding.layer, 80) if finding.layer is not None else "the model"
    heads = summary.heads_of(diagnosis, finding) or ("" if finding.head is None else f"head {finding.head}")
    where += f" {heads}" if heads else ""
    where += "" if finding.step is None else f" step {finding.step}"
    where += f" and {counted(len(group) - 1, 'more place')}" if len(group) > 1 else ""
    after = f" (follows from {text(finding.explained_by)})" if finding.explained_by else ""
    return (
        _MARKS[finding.severity],
        f"{text(finding.code)} {text(finding.name)}",
        where,
        text(measured(finding)),
        (text(message) or "as above") + after,
    )


def _advice(diagnosis: Diagnosis, _: Told) -> Iterator[str]:
    if diagnosis.advice:
        yield from _heading("Well-known advice that would not help here")
        yield from (f"- **{text(item.advice)}** ({text(item.code)}): {text(item.reason)}" for item in diagnosis.advice)


def _coverage(diagnosis: Diagnosis, _: Told) -> Iterator[str]:
    seen = diagnosis.coverage
    counts = summary.rules_by_status(diagnosis)
    listed = ", ".join(f"{amount} {summary.verdict_words(status)}" for status, amount in sorted(counts.items()))
    yield from _heading("What was seen, and what was not")
    yield f"- {seen.layers_observed} of {counted(seen.layers_expected, 'attention layer')} observed; rules: {listed or 'none'}"
    yield from _listed(f"- Blind: {span(b.layer, 80)}, {text(b.site)}: {text(b.reason)}" for b in seen.blind)
    yield from _listed(
        f"- Not evaluable: {' '.join(codes)}: {text(why)}" for why, codes in _unjudged(diagnosis).items()
    )
    yield from _listed(
        f"- Suppressed: {text(item.finding.code)} at {text(summary.where(item.finding))}: {text(item.reason)}"
        for item in diagnosis.suppressed
    )
    yield from _listed(f"- Taken as: {text(assumption)}" for assumption in seen.assumptions)
    yield from _listed(f"- During the run: {text(words)}" for words in extremes(diagnosis))
    yield from _listed(f"- Note: {text(note)}" for note in diagnosis.target.notes)


def _listed(lines: Iterable[str]) -> Iterator[str]:
    """The first of the lines, and how many there are beyond."""
    found = list(lines)
    yield from found[:MOST_ROWS]
    if len(found) > MOST_ROWS:
        yield f"- and {len(found) - MOST_ROWS} more"


def _unjudged(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Reason → codes of the rules that could not be judged for it."""
    found: dict[str, list[str]] = {}
    for rule in diagnosis.rules:
        if rule.status == "not-evaluable":
            found.setdefault(rule.reason, []).append(rule.code)
    return found


def _heading(title: str) -> tuple[str, ...]:
    return ("", f"### {title}", "")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{' --- |' * len(headings)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def text(value: str) -> str:
    """Escaped for running text and table cells: shown as written, never taken for markup, a link or a mention; code in backquotes is code."""
    parts = re.split(r"(`[^`|]+`)", escape.sentence(value))
    return "".join(part if position % 2 else _escaped(part) for position, part in enumerate(parts))


def _escaped(prose: str) -> str:
    shown = (
        re.sub(r"([\\`*_{}\[\]()#+!|~$^])", r"\\\1", prose)
        .replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
    )
    # Bare addresses and @mentions become links on GitHub unless something invisible to the reader parts them.
    return re.sub(r"(://|@|www\.)", lambda match: match[0][:-1] + f"&#{ord(match[0][-1])};", shown)


def span(value: str, longest: int) -> str:
    """Escaped as code for running text and table cells."""
    shown = escape.name(value, longest)
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    # A table cell ends at every bar, also inside code; the backslash is taken away again by the table.
    return f"{fence}{pad}{shown}{pad}{fence}".replace("|", "\\|")


def block(value: str) -> Iterator[str]:
    """Lines of a fenced code block that its own content cannot close."""
    shown = escape.code(value)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", shown)), default=0))
    yield f"{fence}{'diff' if shown.startswith('--- ') else 'python'}"
    yield from shown.splitlines()
    yield fence
