"""What the page says where: the verdict in words, findings and layers with the anchors that tie them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from gnnstab.characters import counted
from gnnstab.records import Cause, Finding, LayerFacts
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    DEGREE_MEDIAN,
    GATE_SATURATED_SHARE,
    LOGIT_SPECTRAL_QK,
)
from gnnstab.report import _charts as charts
from gnnstab.report import summary
from gnnstab.report._extremes import worst_words
from gnnstab.report.evidence import MODEL, Evidence, parameter, status, worst
from gnnstab.report.page_text import fix_title, meaning, rule_page

LINKS_SHOWN = 12

FIGURE_OF = {"score.": "scores", "attention.": "entropy", "logit.": "weights", "gate.": "gate"}
"""Prefix of a signal → the figure of a layer that shows it best."""

PER_HEAD = (
    (
        "entropy",
        ATTENTION_ENTROPY,
        "Attention entropy per head",
        "Fraction of ln(in-degree): 1 is even, 0 is one neighbour only.",
    ),
    (
        "weights",
        LOGIT_SPECTRAL_QK,
        "Spectral norm per head",
        "‖W_qᵀW_k‖₂/√C in logits per unit² of input: how sharp this head can get.",
    ),
    ("gate", GATE_SATURATED_SHARE, "Saturated gate per head", "Share of β gates below 0.05 or above 0.95."),
)


class Anchors:
    """The ids of findings, fixes and layers on the page, each used once."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self.layers = {name: f"layer-{i}" for i, name in enumerate(evidence.layers)}
        unstable = summary.state(evidence.diagnosis) == "unstable"
        quiet = summary.unsuspected(evidence.diagnosis)
        offered = [cause for cause in evidence.diagnosis.causes if cause not in quiet]
        self.fixes = _fix_anchors(offered) if unstable else {}
        """(cause, place among its fixes) → id; a fix that is offered for several causes stands on the page once; of a
        network in which nothing is wrong there are none."""
        self.first: dict[str, str] = {}
        """Rule code → anchor of its first finding."""
        self._of_finding: dict[int, str] = {}
        taken: dict[str, int] = {}
        for finding in summary.in_reading_order(evidence.diagnosis):
            nth = taken[finding.fingerprint] = taken.get(finding.fingerprint, 0) + 1
            anchor = f"finding-{finding.fingerprint}" + (f"-{nth}" if nth > 1 else "")
            self._of_finding[id(finding)] = anchor
            self.first.setdefault(finding.code, anchor)

    def finding(self, finding: Finding) -> str:
        """The id of one finding."""
        return self._of_finding[id(finding)]

    def evidence(self, finding: Finding) -> str:
        """The id of what shows a finding best: a figure, else a number, else its layer, else the coverage."""
        layer, signal = self._evidence.owner(finding.layer), finding.signal
        if layer == MODEL:
            if any(s.name == signal and charts.growth(s, (), ()) for s in self._evidence.growth(MODEL)):
                return f"run-{signal}"
            return f"run-number-{signal}" if self._evidence.signal(signal) else "coverage"
        key = next((figure for prefix, figure in FIGURE_OF.items() if signal.startswith(prefix)), "")
        here = [figure["key"] for figure in self.figures[layer]]
        if key in here:
            return f"{self.layers[layer]}-{key}"
        if signal in here:
            return f"{self.layers[layer]}-growth-{signal}"
        return f"{self.layers[layer]}-{signal}" if self._evidence.signal(signal, layer) else self.layers[layer]

    @cached_property
    def figures(self) -> dict[str, list[dict[str, Any]]]:
        """Layer → the figures that its card holds."""
        drawn = {name: _draw(self._evidence, name) for name in self.layers}
        return {
            name: [figure for figure in figures if figure["picture"] is not None] for name, figures in drawn.items()
        }


def _fix_anchors(causes: Sequence[Cause]) -> dict[tuple[str, int], str]:
    known: dict[tuple[str, str], str] = {}
    anchors: dict[tuple[str, int], str] = {}
    for n, cause in enumerate(causes):
        shown = summary.offered(cause)
        for i, fix in enumerate(cause.fixes):
            if fix in shown:
                anchors[cause.cause, i] = known.setdefault((fix.fix, fix.change), f"fix-{n}-{i}")
    return anchors


def verdict(evidence: Evidence, anchors: Anchors) -> dict[str, str]:
    """State, headline, what contributes, reason and first thing to do."""
    d = evidence.diagnosis
    word, rest = summary.verdict(d)
    state, lead = word.capitalize(), rest[:1].upper() + rest[1:] + "."
    roots = d.root_causes()
    if word == "NOT EVALUABLE" and d.nothing_evaluable:
        none = "Nothing was measured, so nothing can be called healthy."
        return _words(state, "unknown", "Nothing could be judged.", lead, none)
    if word != "UNSTABLE":
        whole = word == "STABLE" and not d.coverage.blind
        headline = "No instability found." if whole else "No instability in what could be seen."
        tone = "unknown" if word == "NOT EVALUABLE" else "good"
        return _words(state, tone, headline, lead, "Nothing crossed a limit.")
    tone = "error" if worst(d.findings) == "error" else "warning"
    also = [cause.cause for cause in d.causes if cause.status == "contributing"]
    reason = roots[0].reason if roots else summary.in_reading_order(d)[0].message
    return {
        **_words(state, tone, _roots(roots) if roots else "Cause not established.", reason, ""),
        "also": f"Contributing: {', '.join(also)}." if also else "",
        **_next(evidence, anchors),
    }


def _roots(roots: tuple[Cause, ...]) -> str:
    """``Root cause: no-residual.``, or ``Root causes: no-residual, then feature-scale.``: the order in which to treat them."""
    if len(roots) == 1:
        return f"Root cause: {roots[0].cause}."
    listed = ", then ".join(cause.cause for cause in roots[:3])
    return f"Root causes: {listed}{f', and {len(roots) - 3} more' if len(roots) > 3 else ''}."


def _words(state: str, tone: str, headline: str, lead: str, none: str) -> dict[str, str]:
    told = {"state": state, "tone": tone, "headline": headline, "lead": lead, "none": none}
    return {**told, "also": "", "next": "", "next_anchor": ""}


def _next(evidence: Evidence, anchors: Anchors) -> dict[str, str]:
    """The fix to begin with, of the first cause to treat that has one; never one that was measured to fail."""
    told = {
        "confirmed": "{} was tried on this model and works.",
        "not-tested": "First thing to try: {}; it has not been tested on this model.",
        "inconclusive": "First thing to try: {}; a test of it was inconclusive.",
    }
    for cause in summary.to_change(evidence.diagnosis):
        fix = summary.recommended(cause)
        if fix is not None:
            anchor = anchors.fixes[cause.cause, cause.fixes.index(fix)]
            title = fix_title(fix.fix)
            name = title if fix.verdict == "confirmed" else title[:1].lower() + title[1:]
            return {"next": told[fix.verdict].format(name), "next_anchor": anchor}
    return {}


def findings(evidence: Evidence, anchors: Anchors, told: summary.Told) -> list[dict[str, Any]]:
    """The findings in order, those that say the same of several places in one card, each place with its picture and links."""
    pages = {code for code in anchors.first if next(rule_page(code), None)}
    fixes = {c.cause: anchors.fixes.get((c.cause, 0), "") for c in evidence.diagnosis.causes}
    return [
        {
            "first": found[0],
            "message": told.new(found[0].message),
            "explained": anchors.first.get(found[0].explained_by or "", ""),
            "fix": fixes.get(found[0].cause, ""),
            "about": found[0].code in pages,
            "places": [
                {"finding": f, "anchor": anchors.finding(f), "evidence": anchors.evidence(f), "gauge": charts.gauge(f)}
                for f in found
            ],
        }
        for found in summary.alike(evidence.diagnosis)
    ]


def layers(evidence: Evidence, anchors: Anchors) -> list[dict[str, Any]]:
    """Every layer in order of depth with its configuration, figures and numbers."""
    place = {id(f): i for i, f in enumerate(summary.in_reading_order(evidence.diagnosis))}
    rows = []
    for name, anchor in anchors.layers.items():
        found = sorted(evidence.findings_by_layer.get(name, ()), key=lambda f: place[id(f)])
        figures = [
            {**figure, "anchor": f"{anchor}-{'growth-' if figure['growth'] else ''}{figure['key']}"}
            for figure in anchors.figures[name]
        ]
        rows.append(
            {
                "name": name,
                "anchor": anchor,
                "worst": worst(found),
                "findings": [(anchors.finding(f), f.code) for f in found[:LINKS_SHOWN]],
                "findings_left": max(0, len(found) - LINKS_SHOWN),
                "facts": describe(evidence.facts.get(name)),
                "figures": figures,
                "numbers": list(_numbers(evidence, name, anchor)),
            }
        )
    return rows


def _numbers(evidence: Evidence, name: str, anchor: str) -> Iterator[dict[str, Any]]:
    """The numbers of a layer; of several with one name, such as one per parameter, the first carries the id."""
    taken: set[str] = set()
    for signal in evidence.numbers(name):
        owner = parameter(signal)
        told = meaning(signal.name) + (f", {owner.removeprefix(name).lstrip('.')}" if owner and owner != name else "")
        told += f"; {words}" if (words := worst_words(signal)) else ""
        tone = status(signal.value, evidence.limits(signal.name))
        identity = None if signal.name in taken else f"{anchor}-{signal.name}"
        taken.add(signal.name)
        yield {"signal": signal, "id": identity, "told": told, "tone": tone}


def _draw(evidence: Evidence, name: str) -> Iterator[dict[str, Any]]:
    def figure(key: str, title: str, words: str, picture: object, *, growth: bool = False) -> dict[str, Any]:
        return {"key": key, "title": title, "words": words, "picture": picture, "growth": growth}

    cap = degree_cap(evidence, name)
    bar = f" The bar: ±{cap:.1f}, all that softmax can weigh at this in-degree." if math.isfinite(cap) else ""
    yield figure(
        "scores",
        "Score distribution per head",
        f"In logits.{bar}",
        charts.scores(evidence.distributions(name), cap, name),
    )
    for key, signal, title, words in PER_HEAD:
        yield figure(key, title, words, charts.per_head(evidence.heads(signal, name), evidence.limits(signal)))
    for series in evidence.growth(name)[:4]:
        picture = charts.growth(series, evidence.limits(series.name), evidence.events(name))
        yield figure(series.name, f"{series.name} over the run", meaning(series.name), picture, growth=True)


def degree_cap(evidence: Evidence, layer: str = MODEL) -> float:
    """3√(2 ln d): the size of score from which softmax over d neighbours is close to one-hot.

    d is the median in-degree of the layer, else of the model, else the largest of any layer; NaN when none is known.
    """
    profile = evidence.profile(DEGREE_MEDIAN)
    known = profile.values[np.isfinite(profile.values)] if profile is not None else np.empty(0)
    own, shared = evidence.value(DEGREE_MEDIAN, layer), evidence.value(DEGREE_MEDIAN)
    degree = next((d for d in (own, shared, known.max(initial=0.0)) if d > 1), math.nan)
    return 3 * math.sqrt(2 * math.log(degree))


def describe(facts: LayerFacts | None) -> str:
    """A layer's configuration in one line; what the source could not show is left out; empty for what is no layer."""
    if facts is None:
        return ""
    width = None if facts.in_channels is None else f"{facts.in_channels[0]} → {facts.out_channels or '?'} channels"
    heads = None if facts.heads is None else counted(facts.heads, "head")
    told = [
        facts.kind,
        width,
        heads,
        _either(facts.concat, "concatenated", "averaged"),
        _either(facts.get("beta"), "beta on", "beta off"),
        None if facts.dropout is None else f"dropout {facts.dropout:g}",
        _either(facts.get("root_weight"), "root weight on", "root weight off"),
        None if facts.aggregation is None else f"aggregation {facts.aggregation}",
        _either(facts.identity_path, "identity path", "no identity path"),
        f"{facts.norm_before} before" if facts.norm_before else None,
        f"{facts.norm_after} after" if facts.norm_after else None,
        facts.activation,
        f"weights {facts.initialisation}" if facts.initialisation else None,
    ]
    return ", ".join(part for part in told if part)


def _either(known: object, yes: str, no: str) -> str | None:
    return None if known is None else yes if known else no
