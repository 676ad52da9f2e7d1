"""The chart of the whole network: one column per layer, one panel per signal, limits shaded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from gnnstab.records import SIGNALS
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    GAIN_LAMBDA_HIGH,
    GRADIENT_INPUT_RMS,
    LOGIT_SPECTRAL_QK,
    OUTPUT_RMS,
    PRECISION_FP16_HEADROOM,
    SCORE_MAX_ABS,
)
from gnnstab.report._charts import mark, side_ticks, zones
from gnnstab.report.escape import apart, shorten
from gnnstab.report.evidence import MODEL, Evidence, Profile, status, worst
from gnnstab.report.page_text import short
from gnnstab.report.summary import first_non_finite
from gnnstab.report.svg import Axis, axis_of, drawing, join, label, line_through, tag

WIDTH, LEFT, RIGHT = 900.0, 46.0, 892.0
PANEL, GAP = 74.0, 34.0
MOST_NAMES = 24
"""Up to so many layers are named below the chart; beyond, they are numbered."""

PANELS = (
    ATTENTION_ENTROPY,
    SCORE_MAX_ABS,
    OUTPUT_RMS,
    GRADIENT_INPUT_RMS,
    PRECISION_FP16_HEADROOM,
    LOGIT_SPECTRAL_QK,
    GAIN_LAMBDA_HIGH,
)
"""Signals from top to bottom; one that no layer measured has no panel."""


def depth(evidence: Evidence) -> Markup | None:
    """The network from the first to the last layer, or None when no panel has a number."""
    found = [p for name in PANELS if (p := evidence.profile(name)) is not None and np.isfinite(p.values).any()]
    if not found:
        return None
    present = {layer for profile in found for layer in profile.layers}
    names = [layer for layer in evidence.layers if layer in present]
    tops = [44 + i * (PANEL + GAP) for i in range(len(found))]
    bottom = tops[-1] + PANEL
    band = (RIGHT - LEFT) / len(names)
    x = [LEFT + band * (i + 0.5) for i in range(len(names))]
    body = [
        *_severity_columns(evidence, names, x, bottom),
        *(_draw(evidence, profile, top, names, x) for profile, top in zip(found, tops, strict=True)),
        *_first_break(evidence, names, x, bottom),
        *_links(evidence, names, x, bottom, found),
    ]
    captions, room = _axis_names(names, x, bottom)
    words = f"Profile over {len(names)} layers: {', '.join(SIGNALS[profile.name].title for profile in found)}"
    return drawing(WIDTH, bottom + room, *body, captions, label=words, class_="chart depth")


def _severity_columns(evidence: Evidence, names: Sequence[str], x: Sequence[float], bottom: float) -> list[Markup]:
    """A shape above every column with findings: where to look first."""
    marks = []
    size = min(4.0, max(1.6, (RIGHT - LEFT) / len(names) / 2.6))
    for name, place in zip(names, x, strict=True):
        severity = worst(evidence.findings_by_layer.get(name, ()))
        if severity:
            if len(names) <= MOST_NAMES:
                marks.append(tag("line", x1=place, x2=place, y1=14, y2=bottom, class_=f"thread {severity}"))
            marks.append(mark(place, 7, severity, size))
    return marks


def _draw(evidence: Evidence, profile: Profile, top: float, names: Sequence[str], x: Sequence[float]) -> Markup:
    kind, limits = SIGNALS[profile.name], evidence.limits(profile.name)
    axis = axis_of(profile.name, np.concatenate([profile.values, profile.low, profile.high]), top + PANEL, top)
    row = {layer: i for i, layer in enumerate(profile.layers)}
    order = [row.get(name, -1) for name in names]
    values = np.array([profile.values[i] if i >= 0 else math.nan for i in order])
    size = min(3.5, max(1.5, (RIGHT - LEFT) / len(x) / 3.0))
    marks = [
        mark(place, axis(v), status(v, limits), size)
        for place, v in zip(x, values.tolist(), strict=True)
        if math.isfinite(v)
    ]
    parts = [
        label(kind.title, LEFT, top - 8, "panel-title"),
        label(kind.unit, RIGHT, top - 8, "tick unit", "end"),
        side_ticks(axis, 4, LEFT, RIGHT),
        zones(axis, limits, LEFT, RIGHT, upright=True),
        *_whiskers(profile, order, x, axis),
        line_through(Axis(LEFT, RIGHT, LEFT, RIGHT), axis, np.array(x), values, "line"),
        *marks,
        *_broken(evidence.broken(profile.name), names, x, top),
    ]
    return join(parts)


def _whiskers(profile: Profile, order: Sequence[int], x: Sequence[float], axis: Axis) -> list[Markup]:
    marks = []
    class_ = "whisker" if len(x) <= MOST_NAMES else "whisker fine"
    for place, i in zip(x, order, strict=True):
        if i >= 0 and math.isfinite(profile.low[i]) and profile.high[i] > profile.low[i]:
            low, high = axis(float(profile.low[i])), axis(float(profile.high[i]))
            marks.append(tag("line", x1=place, x2=place, y1=low, y2=high, class_=class_))
    return marks


def _first_break(evidence: Evidence, names: Sequence[str], x: Sequence[float], bottom: float) -> list[Markup]:
    """A line through the layer in which a forward first made or met a non-finite value."""
    event = first_non_finite(evidence.diagnosis)
    owner = evidence.owner(event.layer) if event else MODEL
    if event is None or owner not in names or event.stage in ("gradient", "loss"):
        return []
    place = x[names.index(owner)]
    side, anchor = (9, "start") if place < RIGHT - 150 else (-9, "end")
    return [
        tag("line", x1=place, x2=place, y1=14, y2=bottom, class_="event error"),
        label("first non-finite value", place + side, 11, "value", anchor),
    ]


def _broken(broken: dict[str, str], names: Sequence[str], x: Sequence[float], top: float) -> list[Markup]:
    """A square at the top of the panel over every layer whose number is none, with what it is instead."""
    marks = []
    for name, place in zip(names, x, strict=True):
        if name in broken:
            marks.append(mark(place, top + 6, "error", 3.5))
            if len(names) <= MOST_NAMES:
                marks.append(label(broken[name], place + 8, top + 10, "value", "start"))
    return marks


def _axis_names(names: Sequence[str], x: Sequence[float], bottom: float) -> tuple[Markup, float]:
    """The names below the columns and the height that they take: level where they fit, else turned, else numbers."""
    if len(names) > MOST_NAMES:
        stride = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if len(names) / s <= 25)
        shown = [i for i in range(len(names)) if i % stride == 0]
        numbers = [label(str(i), x[i], bottom + 16, "tick", "middle") for i in shown]
        return join([*numbers, label("layer, from 0", RIGHT, bottom + 32, "tick unit", "end")]), 40.0
    room = int((RIGHT - LEFT) / len(names) / 6.5)
    shared, tails = apart(names, room)
    tails = [f"….{tail}" for tail in tails] if shared else tails
    if max(map(len, tails)) <= room:
        level = [label(tail, place, bottom + 18, "name", "middle") for tail, place in zip(tails, x, strict=True)]
        return join(level), 30.0
    tails, at = [shorten(tail, 20) for tail in tails], bottom + 14
    turned = [
        tag("text", tail, x=place + 4, y=at, class_="name", text_anchor="end",
            transform=f"rotate(-38 {place + 4:.1f} {at:.1f})")
        for tail, place in zip(tails, x, strict=True)
    ]  # fmt: skip
    return join(turned), 24 + 4.2 * max(map(len, tails))


def _links(
    evidence: Evidence, names: Sequence[str], x: Sequence[float], bottom: float, profiles: Sequence[Profile]
) -> list[Markup]:
    """A clear column over every layer that leads to its evidence and tells its numbers on hover."""
    width = (RIGHT - LEFT) / len(names)
    position = {layer: i for i, layer in enumerate(evidence.layers)}
    links = []
    for name, place in zip(names, x, strict=True):
        shown = [profile.name for profile in profiles if name in profile.layers]
        numbers = [f"{SIGNALS[signal].title}: {short(evidence.value(signal, name))}" for signal in shown]
        title = tag("title", "\n".join([name, *numbers]))
        column = tag("rect", title, x=place - width / 2, y=0.0, width=width, height=bottom, class_="column")
        # Not in the tab order: the same links stand in the list of layers below, once each.
        links.append(tag("a", column, href=f"#layer-{position[name]}", tabindex="-1", aria_hidden="true"))
    return links
