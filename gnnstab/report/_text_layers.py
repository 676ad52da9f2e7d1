"""The evidence part of the terminal report: numbers per layer, and what was seen and what was not."""

from __future__ import annotations

import math
from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from gnnstab.characters import counted
from gnnstab.records import SIGNALS, Diagnosis, LayerFacts
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    GRADIENT_INPUT_RMS,
    LOGIT_SPECTRAL_QK,
    OUTPUT_RMS,
    PRECISION_FP16_HEADROOM,
    SCORE_MAX_ABS,
)
from gnnstab.report import escape, summary
from gnnstab.report._extremes import before_it_broke, extremes
from gnnstab.report.console import MUTED, SEVERITY
from gnnstab.report.numbers import number
from gnnstab.report.text_parts import relative_to, table

COLUMNS = (
    SCORE_MAX_ABS,
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    LOGIT_SPECTRAL_QK,
    PRECISION_FP16_HEADROOM,
    OUTPUT_RMS,
    GRADIENT_INPUT_RMS,
)
"""From the most to the least telling; narrow terminals lose the last."""


def layers(diagnosis: Diagnosis, width: int) -> RenderableType | None:
    """One row per layer with the numbers that decide; a column without any value is left out."""
    if not any(layer.attention for layer in diagnosis.layers):
        return None
    values = {signal: _per_layer(diagnosis, signal) for signal in COLUMNS}
    used = [signal for signal in COLUMNS if values[signal]]
    used = used[: max(1, (width - 40) // 9)]
    troubled = {finding.layer for finding in diagnosis.findings}
    chosen = [x for x in diagnosis.layers if x.attention or any(x.name in values[signal] for signal in used)]
    path, names = escape.apart([layer.name for layer in chosen], max(16, width - 24 - 10 * len(used)))
    grid = table("", "Layer", "Shape", *(SIGNALS[signal].heading for signal in used), numbers=3)
    for layer, label in zip(chosen, names, strict=True):
        numbers = [number(values[signal].get(layer.name)) for signal in used]
        mark = Text("!", style=SEVERITY["warning"]) if layer.name in troubled else Text(" ")
        grid.add_row(mark, Text(label), Text(_shape(layer)), *numbers)
    before = before_it_broke(diagnosis, used)
    return Group(*([relative_to(path)] if path else []), grid, *([Text(before, MUTED)] if before else []))


def _per_layer(diagnosis: Diagnosis, name: str) -> dict[str, float]:
    """Layer → the aggregate over heads, the latest step's where there are several, else the worst head."""
    found: dict[str, float] = {}
    heads: dict[str, list[float]] = {}
    worst = max if SIGNALS[name].rises else min
    for signal in diagnosis.signals:
        if signal.name != name or signal.layer is None:
            continue
        if signal.head is None:
            found[signal.layer] = signal.value
        else:
            heads.setdefault(signal.layer, []).append(signal.value)
    for layer, values in heads.items():
        found.setdefault(layer, math.nan if any(math.isnan(v) for v in values) else worst(values))
    return found


def _shape(layer: LayerFacts) -> str:
    """``16→16 ×3``: input width, output width per head, heads; ``?`` where the source cannot show it."""
    if layer.in_channels is None and layer.out_channels is None:
        return "?"
    source, target = layer.in_channels or ("?", "?")
    inputs = str(target) if source == target else f"{source},{target}"
    outputs = "?" if layer.out_channels is None else str(layer.out_channels)
    heads = "?" if layer.heads is None else str(layer.heads)
    return f"{inputs}→{outputs} ×{heads}"


def coverage(diagnosis: Diagnosis) -> RenderableType:
    """Layers seen, blind sites with the remedy, rules without verdict, assumptions, notes."""
    seen = diagnosis.coverage
    lines = [
        f"{seen.layers_observed} of {counted(seen.layers_expected, 'attention layer')} observed; {_rule_counts(diagnosis)}."
    ]
    lines += [f"Blind: {escape.name(b.layer)}, {escape.name(b.site)}: {escape.sentence(b.reason)}" for b in seen.blind]
    lines += [f"During the run: {escape.sentence(words)}." for words in extremes(diagnosis)]
    lines += _rules(diagnosis)
    for item in diagnosis.suppressed:
        place = f"{item.finding.code} at {summary.where(item.finding)}"
        lines.append(f"Suppressed: {place}: {escape.sentence(item.reason)}")
    if seen.assumptions:
        lines.append("Taken as: " + "; ".join(escape.sentence(a) for a in seen.assumptions) + ".")
    lines += [f"Note: {escape.sentence(note)}" for note in diagnosis.target.notes]
    return Group(*(Text(line) for line in lines))


def _rule_counts(diagnosis: Diagnosis) -> str:
    counts = summary.rules_by_status(diagnosis)
    order = ("fired", "passed", "not-applicable", "not-evaluable", "suppressed")
    shown = [f"{counts[status]} {summary.verdict_words(status)}" for status in order if counts[status]]
    return f"{counted(len(diagnosis.rules), 'rule')}: {', '.join(shown) or 'none'}"


def _rules(diagnosis: Diagnosis) -> list[str]:
    """All rules with their status, those with the same reason together; first the ones that could not be judged."""
    statuses = ("not-evaluable", "suppressed", "not-applicable", "passed", "fired")
    chosen = sorted(diagnosis.rules, key=lambda rule: (statuses.index(rule.status), rule.reason, rule.code))
    lines = []
    for (status, reason), rules in groupby(chosen, key=lambda rule: (rule.status, rule.reason)):
        codes = " ".join(rule.code for rule in rules)
        tail = f": {escape.sentence(reason)}" if reason else ""
        lines.append(f"{summary.verdict_words(status).capitalize()}: {codes}{tail}")
    return lines
