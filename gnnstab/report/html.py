"""One self-contained page: verdict, causes, findings with their evidence drawn, fixes, coverage.

Nothing is loaded from anywhere. Every text of a diagnosis is hostile input: the templates escape it, invisible and
direction-changing characters are spelled out, and the page's own policy allows exactly one script and one style sheet,
by their hashes. The same diagnosis gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gnnstab.records import Cause, Diagnosis, FixAdvice
from gnnstab.report import _charts as charts
from gnnstab.report import summary
from gnnstab.report._depth import PANELS, depth
from gnnstab.report._extremes import before_it_broke
from gnnstab.report._glossary import HOW
from gnnstab.report.escape import visible
from gnnstab.report.evidence import MODEL, Evidence
from gnnstab.report.faces import plain, spoken
from gnnstab.report.page_text import clip, fix_cost, fix_title, meaning, prose, rule_page, sentence, short
from gnnstab.report.sections import Anchors, findings, layers, verdict

EVENTS_SHOWN = 60
EVIDENCE_SHOWN = 3

TONES = {
    "root-cause": "error", "contributing": "warning", "present": "info", "absent": "good",
    "fired": "error", "passed": "good",
    "confirmed": "good", "made-worse": "error", "inconclusive": "warning",
}  # fmt: skip
"""Status of a cause, status of a rule, verdict on a fix → tone; ``unknown`` for all others."""

VERDICT_WORDS = {
    "confirmed": "confirmed on this model",
    "no-effect": "tried, no effect",
    "made-worse": "tried, made it worse",
    "inconclusive": "tried, inconclusive",
    "not-tested": "not tested yet",
}


def render(diagnosis: Diagnosis) -> str:
    """The page as one HTML document, ready to be written as UTF-8."""
    return _environment().get_template("report.html.j2").render(_context(diagnosis))


def embed(diagnosis: Diagnosis, height: int = 720) -> str:
    """The page inside a frame of its own, for notebooks: its styles and scripts cannot reach the notebook."""
    frame = '<iframe title="gnnstab report" sandbox="allow-scripts" srcdoc="{}" width="100%" height="{}" style="border:0"></iframe>'
    return str(Markup(frame).format(render(spoken(diagnosis)), height))


def _context(diagnosis: Diagnosis) -> dict[str, Any]:
    from gnnstab import __version__

    evidence = Evidence(diagnosis)
    anchors = Anchors(evidence)
    css, js, told = _asset("page.css"), _asset("page.js"), summary.Told()
    head = verdict(evidence, anchors)
    page: dict[str, Any] = {
        "version": __version__,
        "policy": _policy(css, js),
        "css": Markup(css),
        "js": Markup(js),
        "d": diagnosis,
        "verdict": {**head, "lead": told.new(head["lead"])},
        "tally": [(w, one, many, sum(f.severity == w for f in diagnosis.findings)) for w, one, many in _PLURALS],
        "depth": depth(evidence),
        "before": before_it_broke(diagnosis, PANELS),
        "causes": _causes(diagnosis, anchors, told),
        "quiet": ", ".join(cause.cause for cause in summary.unsuspected(diagnosis)),
        "findings": findings(evidence, anchors, told),
        "found": len(diagnosis.findings),
        "codes": sorted({(f.code, f.name) for f in diagnosis.findings}),
        "suppressed": diagnosis.suppressed,
        "fixes": _fixes(evidence, anchors),
        "run": charts.run_series(evidence),
        "model_numbers": evidence.numbers(MODEL),
        "test": summary.how_to_test(
            fix for c in summary.by_weight(diagnosis) for i, fix in enumerate(c.fixes) if (c.cause, i) in anchors.fixes
        ),
        "whose_weights": summary.whose_weights,
        "events": evidence.events()[:EVENTS_SHOWN],
        "events_left": max(0, len(diagnosis.events) - EVENTS_SHOWN),
        "layers": layers(evidence, anchors),
        "pages": [(code, anchor, list(rule_page(code))) for code, anchor in anchors.first.items()],
        "rules": [(rule, TONES.get(rule.status, "unknown")) for rule in diagnosis.rules],
    }
    page["sections"] = list(_sections(page))
    return page


_PLURALS = (("error", "error", "errors"), ("warning", "warning", "warnings"), ("info", "note", "notes"))


def _sections(page: dict[str, Any]) -> Iterator[tuple[str, str]]:
    run = page["run"] or page["model_numbers"] or page["events"]
    absent_when_empty = {"network": page["depth"], "fixes": page["fixes"], "advice": page["d"].advice, "run": run,
                         "layers": page["layers"]}  # fmt: skip
    for name in ("network", "causes", "findings", "fixes", "advice", "run", "layers", "coverage", "guide"):
        if absent_when_empty.get(name, True):
            yield name, "Model" if name == "run" and not page["run"] else name.capitalize()


def _causes(diagnosis: Diagnosis, anchors: Anchors, told: summary.Told) -> list[dict[str, Any]]:
    """In the order in which they weigh: root causes, what contributes, then what is merely so, unknown or absent."""
    return [
        {
            "cause": cause,
            "title": sentence(cause.cause),
            "tone": TONES.get(cause.status, "unknown"),
            "words": summary.verdict_words(cause.status),
            "how": HOW.get(cause.how, ""),
            "reason": told.new(cause.reason) or ("" if cause in summary.to_change(diagnosis) else "As above."),
            "codes": [(code, anchors.first[code]) for code in cause.codes if code in anchors.first],
            "fixes": [anchor for i in range(len(cause.fixes)) if (anchor := anchors.fixes.get((cause.cause, i)))],
            **_card(cause, diagnosis, anchors),
        }
        for cause in summary.told(diagnosis)
    ]


def _card(cause: Cause, diagnosis: Diagnosis, anchors: Anchors) -> dict[str, Any]:
    """Of a cause to treat: the findings that show it, with their numbers, and the change to make first."""
    if cause not in summary.to_change(diagnosis):
        return {"shown": [], "change": None}
    own = [f for f in summary.in_reading_order(diagnosis) if f.code in cause.codes and f.explained_by is None]
    best = summary.recommended(cause)
    anchor = None if best is None else anchors.fixes.get((cause.cause, cause.fixes.index(best)))
    change = best and {
        "title": fix_title(best.fix),
        "words": VERDICT_WORDS.get(best.verdict, best.verdict),
        "anchor": anchor,
    }
    return {"shown": [(anchors.finding(f), f) for f in own[:EVIDENCE_SHOWN]], "change": change if anchor else None}


def _fixes(evidence: Evidence, anchors: Anchors) -> list[dict[str, Any]]:
    """Fixes of root causes first, then in the order of the causes; the proven ones of a cause before the others."""
    measured = {id(change.fix): change for change in evidence.before_after()}
    rows: dict[str, dict[str, Any]] = {}
    told = summary.Told()
    for cause in summary.by_weight(evidence.diagnosis):
        for fix in summary.fixes_in_order(cause):
            anchor = anchors.fixes.get((cause.cause, cause.fixes.index(fix)), "")
            if not anchor:
                continue
            row = rows.setdefault(anchor, {"anchor": anchor, "causes": [], "outcomes": [], **_fix(fix)})
            row["causes"].append(cause.cause)
            change = measured.get(id(fix))
            chart = None if change is None else charts.before_after(change)
            outcome = {"fix": fix, "note": told.new(summary.note(fix)), "chart": chart}
            shown = {(o["fix"].signal, o["fix"].before, o["fix"].after) for o in row["outcomes"]}
            if outcome["note"] or (fix.before is not None and (fix.signal, fix.before, fix.after) not in shown):
                row["outcomes"].append({**outcome, "meaning": meaning(fix.signal)})
    return list(rows.values())


def _fix(fix: FixAdvice) -> dict[str, Any]:
    return {
        "title": fix_title(fix.fix),
        "cost": fix_cost(fix.fix),
        "tone": TONES.get(fix.verdict, "unknown"),
        "words": VERDICT_WORDS.get(fix.verdict, fix.verdict),
        "code": _code(fix),
    }


def _code(fix: FixAdvice) -> Markup:
    """The change line by line; the added and removed lines of a diff are marked as such."""
    kinds = {"+": "add", "-": "del"}
    lines = []
    for line in visible(fix.change, newlines=True).split("\n"):
        kind = None if line.startswith(("---", "+++")) else kinds.get(line[:1])
        lines.append(Markup('<span class="{}">{}</span>').format(kind, line) if kind else escape(line))
    return Markup("\n").join(lines)


def _show(value: object) -> object:
    return visible(value, newlines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gnnstab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        short=short, clip=clip, oneline=visible, meaning=meaning, capfirst=sentence, prose=prose, plain=plain
    )
    return environment


def _asset(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _policy(css: str, js: str) -> str:
    """A policy that allows this style sheet and this script, and nothing else at all."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in (css, js))
    style, script = (f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; style-src {style}; script-src {script}; img-src data:; base-uri 'none'; form-action 'none'"
