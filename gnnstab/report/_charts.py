"""The charts of the page, as inline SVG; colours and type come from the page's style sheet, so both themes hold.

Every chart is drawn from `Evidence` alone and comes back as None where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from markupsafe import Markup

from gnnstab.records import Event, Finding, Series, Signal
from gnnstab.report.distribution import Distribution
from gnnstab.report.escape import visible
from gnnstab.report.evidence import MODEL, BeforeAfter, Evidence, Limit, status, thin
from gnnstab.report.page_text import short
from gnnstab.report.svg import Axis, axis_for, axis_of, drawing, join, label, line_through, pixel, rules, tag

HEADS_SHOWN = 16
POINTS = 64
"""Points per line in a layer's small charts; every stretch keeps its smallest and largest."""


def mark(x: float, y: float, severity: str, size: float = 3.5) -> Markup:
    """A data point whose shape says the same as its colour: circle fine, triangle warning, square error."""
    if severity == "error":
        return tag("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_="mark error")
    if severity == "warning":
        points = f"{x:.1f},{y - size * 1.3:.1f} {x + size * 1.2:.1f},{y + size:.1f} {x - size * 1.2:.1f},{y + size:.1f}"
        return tag("polygon", points=points, class_="mark warning")
    return tag("circle", cx=x, cy=y, r=size, class_=f"mark {severity}".strip())


GAUGE_LIMIT = 60.0
"""Pixel of the limit in every strip, so that strips compare across findings."""

GAUGE_DECADE = 30.0
"""Pixels per factor of ten past the limit; what lies further out than the strip is drawn at its end."""


def gauge(finding: Finding) -> Markup | None:
    """How many times the number of a finding lies past its limit, on the scale that all strips share."""
    value, limit = finding.value, finding.threshold
    if finding.severity == "info" or math.isnan(value) or not math.isfinite(limit) or limit <= 0 or value < 0:
        return None  # a note need not lie past its limit
    above = value > limit
    past = value / limit if above else limit / value if value > 0 else math.inf
    decades = math.log10(past) if past < 1e9 else 9.0
    x = min(GAUGE_LIMIT + GAUGE_DECADE * decades, 190.0)
    factor = f"{short(past)} × {'the limit' if above else 'below it'}"
    told = "exactly 0" if not value else "infinite" if math.isinf(value) else "far past it" if past >= 1e9 else factor
    far = [tag("path", d="M190 7l6 5l-6 5", class_=f"far {finding.severity}")] if x >= 190 else []
    return drawing(
        200,
        34,
        tag("line", x1=6, x2=194, y1=12, y2=12, class_="rail"),
        tag("rect", x=GAUGE_LIMIT, y=9, width=194 - GAUGE_LIMIT, height=6, class_=f"zone {finding.severity}"),
        tag("line", x1=GAUGE_LIMIT, x2=GAUGE_LIMIT, y1=4, y2=20, class_="limit"),
        *far,
        mark(min(x, 186.0) if far else x, 12, finding.severity, 4.5),
        label(f"limit {short(limit)}", GAUGE_LIMIT, 31, "tick", "middle"),
        label(told, 194, 31, "tick", "end"),
        label=f"{finding.signal} {short(value)}, limit {short(limit)} {finding.unit}",
        class_="gauge",
    )


def _beside(text: str, x: float, y: float, right: float) -> Markup:
    """A number beside its mark, in front of it where there is no room behind."""
    return label(text, x - 9, y, "value", "end") if x > right else label(text, x + 9, y, "value", "start")


def side_ticks(axis: Axis, most: int, left: float, right: float) -> Markup:
    """Level lines from ``left`` to ``right`` with their numbers in front."""
    ticks = axis.labels(most)
    texts = [label(text, left - 6, axis(t) + 3.5, "tick", "end") for t, text in ticks]
    return join([rules([axis(t) for t, _ in ticks], left, right, "grid"), *texts])


# ── One layer ────────────────────────────────────────────────────────────────────────────────────────────────────────


def scores(distributions: Sequence[Distribution], cap: float, name: str) -> Markup | None:
    """The score distribution of every head on one shared scale, under each the width that softmax still weighs.

    ``cap``: how far the scores of a target may lie from their mean before its attention is nearly one-hot; NaN for no bar.
    """
    shown = distributions[:HEADS_SHOWN]
    if not shown:
        return None
    row, left, width = 30.0, 46.0, 440.0
    height = row * len(shown) + 34
    edges = [d.low for d in shown] + [d.high for d in shown]
    axis = axis_for(edges, left, width - 12)
    rows = [_score_row(d, axis, 8 + row * i, row - 6, cap) for i, d in enumerate(shown)]
    return drawing(
        width,
        height,
        _bottom_ticks(axis, height - 22),
        *rows,
        label=f"Pre-softmax score distribution of {len(shown)} heads of {name}, from {short(axis.low)} to {short(axis.high)} logits",
    )


def _score_row(d: Distribution, axis: Axis, top: float, height: float, cap: float) -> Markup:
    head = "all" if d.head is None else f"head {d.head}"
    base = top + height
    title = tag("title", f"{head}: {short(d.low)} to {short(d.high)} logits, std {short(d.std)}")
    caption = label(head, axis.start - 6, base - 6, "tick", "end")
    if len(d.edges):
        peak = float(d.counts.max()) or 1.0
        steps = [
            f"V{pixel(base - height * float(count) / peak)}H{pixel(axis(float(right)))}"
            for right, count in zip(d.edges[1:], d.counts, strict=True)
        ]
        outline = f"M{pixel(axis(float(d.edges[0])))} {pixel(base)}{''.join(steps)}V{pixel(base)}Z"
        body = tag("path", title, d=outline, class_="hill")
    else:
        middle = base - height / 2
        body = tag("line", title, x1=axis(d.low), x2=axis(d.high), y1=middle, y2=middle, class_="whisker wide")
    parts = [caption, rules([base], axis.start, axis.stop, "rail"), body]
    if math.isfinite(cap):
        left, right = (min(max(axis(d.middle + side), axis.start), axis.stop) for side in (-cap, cap))
        ends = {"x1": left, "x2": max(right, left + 1.5), "y1": base + 1.5, "y2": base + 1.5}
        parts.append(tag("line", tag("title", f"±{cap:.1f} logits"), **ends, class_="room"))
    return join(parts)


def per_head(signals: Sequence[Signal], limits: Sequence[Limit]) -> Markup | None:
    """One number per head as dots on a shared scale, unhealthy zones shaded."""
    shown = [s for s in signals[:HEADS_SHOWN] if math.isfinite(s.value)]
    if not shown:
        return None
    name, row, left, width = shown[0].name, 20.0, 46.0, 440.0
    height = row * len(shown) + 30
    axis = axis_of(name, [s.value for s in shown], left, width - 12)
    dots = []
    for i, s in enumerate(shown):
        dots.append(label(f"head {s.head}", left - 6, 14 + row * i, "tick", "end"))
        dots.append(mark(axis(s.value), 10 + row * i, status(s.value, limits), 4))
        dots.append(_beside(short(s.value), axis(s.value), 14 + row * i, width - 50))
    words = ", ".join(f"head {s.head} {short(s.value)}" for s in shown)
    stems = rules([10 + row * i for i in range(len(shown))], axis.start, axis.stop, "stem")
    return drawing(
        width,
        height,
        zones(axis, limits, 2, height - 24),
        stems,
        _bottom_ticks(axis, height - 22),
        *dots,
        label=f"{name} per head: {words}",
    )


def zones(axis: Axis, limits: Sequence[Limit], near: float, far: float, *, upright: bool = False) -> Markup:
    """The unhealthy side of every limit that lies inside the axis, shaded from pixel ``near`` to ``far`` across it."""
    shapes = []
    for limit in (limit for limit in limits if axis.low < limit.value < axis.high):
        edge, end = axis(limit.value), axis.start if limit.side == "below" else axis.stop
        along, deep = (min(edge, end), abs(end - edge)), (near, far - near)
        (x, width), (y, height) = (deep, along) if upright else (along, deep)
        (x1, x2), (y1, y2) = ((near, far), (edge, edge)) if upright else ((edge, edge), (near, far))
        shapes.append(tag("rect", x=x, y=y, width=width, height=height, class_=f"zone {limit.severity}"))
        shapes.append(tag("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=f"limit {limit.severity}"))
    return join(shapes)


def _bottom_ticks(axis: Axis, y: float) -> Markup:
    ticks = axis.labels(5)
    places = [axis(t) for t, _ in ticks]
    texts = [label(text, x, y + 14, "tick", "middle") for (_, text), x in zip(ticks, places, strict=True)]
    return join([rules([y], axis.start, axis.stop, "rail"), rules(places, y, y + 3, "rail", upright=True), *texts])


def growth(series: Series, limits: Sequence[Limit], events: Sequence[Event], *, wide: bool = False) -> Markup | None:
    """One number over the steps of a run, with its limit and the events on it."""
    finite = series.values[np.isfinite(series.values)]
    if not len(finite):
        return None
    name, (width, height) = series.name, ((900.0, 130.0) if wide else (440.0, 96.0))
    left, right, top, bottom = 46.0, width - 12, 8.0, height - 24
    axis_y = axis_of(name, finite, bottom, top, linear=bool((finite < 0).any() or not (finite > 0).any()))
    steps = series.steps.astype(np.float64)
    axis_x = Axis(float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1), left, right)
    xs, ys = thin(steps, series.values, 4 * POINTS if wide else POINTS)
    lines = [
        tag("line", x1=left, x2=right, y1=axis_y(m.value), y2=axis_y(m.value), class_=f"limit {m.severity}")
        for m in limits
        if axis_y.low < m.value < axis_y.high
    ]
    last = len(ys) - 1 - int(np.argmax(np.isfinite(ys[::-1])))
    words = f"{name} from {short(float(finite[0]))} to {short(float(finite[-1]))} over steps {int(steps[0])} to {int(steps[-1])}"
    return drawing(
        width,
        height,
        side_ticks(axis_y, 3, left, right),
        *_broken(series, axis_x, top, bottom),
        *lines,
        *_event_lines(events, axis_x, top, bottom),
        line_through(axis_x, axis_y, xs, ys, "line"),
        mark(axis_x(float(xs[last])), axis_y(float(ys[last])), status(float(ys[last]), limits), 3.5),
        *_step_ticks(axis_x, bottom),
        label=words,
        class_="chart wide" if wide else "chart",
    )


def _broken(series: Series, axis: Axis, top: float, bottom: float) -> list[Markup]:
    """Every stretch of steps without a finite value as a band from its first step; the first says what it holds."""
    bad = ~np.isfinite(series.values)
    starts = np.flatnonzero(bad & ~np.concatenate([[False], bad[:-1]]))
    marks = []
    for start in starts:
        end = start + int(np.argmin(bad[start:])) if not bad[start:].all() else None
        left = axis(float(series.steps[start]))
        right = axis.stop if end is None else axis(float(series.steps[end]))
        marks.append(tag("rect", x=left, y=top, width=max(right - left, 1.0), height=bottom - top, class_="broken"))
    if len(starts):
        first = int(starts[0])
        word = "NaN" if math.isnan(series.values[first]) else "∞"
        x = axis(float(series.steps[first]))
        beside, anchor = (-4, "end") if x > axis.stop - 110 else (4, "start")
        marks.append(label(f"{word} from step {series.steps[first]}", x + beside, top + 10, "value", anchor))
    return marks


def _step_ticks(axis: Axis, y: float) -> list[Markup]:
    ticks = [t for t in axis.ticks(5) if t == int(t)] or [axis.low]
    numbers = [label(short(t), axis(t), y + 14, "tick", "middle") for t in ticks]
    return [*numbers, label("step", axis.start - 6, y + 14, "tick unit", "end")]


def _event_lines(events: Sequence[Event], axis: Axis, top: float, bottom: float) -> list[Markup]:
    inside = [e for e in events if axis.low <= e.step <= axis.high]
    marks = []
    for x, here in groupby(inside, key=lambda e: round(axis(float(e.step)))):
        group = list(here)
        severity = "error" if any(e.kind == "non-finite" for e in group) else "note"
        title = tag("title", "; ".join(f"step {e.step}: {e.message or e.kind}"[:200] for e in group[:4]))
        marks.append(tag("line", title, x1=x, x2=x, y1=top, y2=bottom, class_=f"event {severity}"))
    return marks


# ── One fix ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def before_after(change: BeforeAfter) -> Markup | None:
    """A dumbbell from before to after against the limit."""
    before, after = change.fix.before, change.fix.after
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    signal, shown = change.fix.signal, [before, after, *(m.value for m in change.limits)]
    axis = axis_of(signal, shown, 14, 426, linear=min(before, after) <= 0)
    x0, x1, y = axis(before), axis(after), 34
    apart = abs(x1 - x0) > 120  # both captions fit side by side, wherever they are anchored
    first, second = f"before {short(before)}", f"after {short(after)}"
    words = [
        label(first, x0, 14, "value", _anchor(x0)),
        label(second, x1, 14 if apart else 62, "value strong", _anchor(x1)),
    ]
    return drawing(
        440,
        92,
        zones(axis, change.limits, 22, 46),
        tag("line", x1=x0, x2=x1, y1=y, y2=y, class_="move"),
        tag("circle", cx=x0, cy=y, r=5, class_="mark hollow"),
        tag("circle", cx=x1, cy=y, r=5, class_=f"mark {status(after, change.limits) or 'good'}"),
        *words,
        _bottom_ticks(axis, 70),
        label=visible(f"{signal}: before {short(before)}, after {short(after)}"),
    )


def _anchor(x: float) -> str:
    return "start" if x < 50 else ("end" if x > 390 else "middle")


def run_series(evidence: Evidence) -> list[tuple[Series, Markup]]:
    """Loss, gradient norm and the other numbers of the whole run over its steps."""
    pictures = [(s, growth(s, evidence.limits(s.name), evidence.events(), wide=True)) for s in evidence.growth(MODEL)]
    return [(series, picture) for series, picture in pictures if picture is not None]
