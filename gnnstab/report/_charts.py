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
from gnnstab.report.evidence import MODEL, BeforeAfter, Evidence, Limit, thin
from gnnstab.report.scales import axis_of, status
from gnnstab.report.svg import Axis, axis_for, drawing, join, label, line_through, pixel, rules, tag, tick_text
from gnnstab.report.wording import short

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


def gauge(finding: Finding) -> Markup | None:
    """How far the number of a finding lies from its limit, on a scale that both fit on."""
    value, limit = finding.value, finding.threshold
    if not (math.isfinite(value) and math.isfinite(limit)):
        return None
    kind = "log" if value > 0 and limit > 0 and not 0.1 < value / limit < 10 else "linear"
    axis = _gauge_axis(value, limit, kind)
    x, edge = axis(value), axis(limit)
    bad = (axis.start, edge) if value < limit else (edge, axis.stop)
    return drawing(
        200,
        34,
        tag("line", x1=axis.start, x2=axis.stop, y1=12, y2=12, class_="rail"),
        tag("rect", x=bad[0], y=9, width=max(bad[1] - bad[0], 0.0), height=6, class_=f"zone {finding.severity}"),
        tag("line", x1=edge, x2=edge, y1=4, y2=20, class_="limit"),
        mark(x, 12, finding.severity, 4.5),
        label(f"limit {tick_text(limit)}", edge, 31, "tick", _anchor(edge, 40, 160)),
        label=f"{finding.signal} {short(value)}, limit {short(limit)} {finding.unit}",
        class_="gauge",
    )


def _gauge_axis(value: float, limit: float, kind: str) -> Axis:
    if kind == "log":
        low, high = min(value, limit) / 4, max(value, limit) * 4
        return Axis(low, high, 6, 194, "log")
    span = max(abs(value - limit), abs(limit) * 0.2, 1e-12)
    low, high = min(value, limit) - 0.6 * span, max(value, limit) + 0.6 * span
    return Axis(max(low, 0.0) if min(value, limit) >= 0 else low, high, 6, 194)


def _anchor(x: float, left: float, right: float) -> str:
    return "start" if x < left else ("end" if x > right else "middle")


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
        body = tag(
            "path",
            title,
            d=f"M{pixel(axis(float(d.edges[0])))} {pixel(base)}{''.join(steps)}V{pixel(base)}Z",
            class_="hill",
        )
    elif d.quantiles:
        body = _box(d, axis, base - height / 2, title)
    else:
        middle = base - height / 2
        body = tag("line", title, x1=axis(d.low), x2=axis(d.high), y1=middle, y2=middle, class_="whisker wide")
    return join([caption, rules([base], axis.start, axis.stop, "rail"), body, *_room(d, axis, base, cap)])


def _room(d: Distribution, axis: Axis, base: float, cap: float) -> list[Markup]:
    if not math.isfinite(cap):
        return []
    left, right = (min(max(axis(d.middle + side), axis.start), axis.stop) for side in (-cap, cap))
    title = tag("title", f"±{cap:.1f} logits")
    return [tag("line", title, x1=left, x2=max(right, left + 1.5), y1=base + 1.5, y2=base + 1.5, class_="room")]


def _box(d: Distribution, axis: Axis, y: float, title: Markup) -> Markup:
    at = {percentile: axis(value) for percentile, value in d.quantiles}
    low, high = at.get(25.0, min(at.values())), at.get(75.0, max(at.values()))
    middle = at.get(50.0, (low + high) / 2)
    return tag(
        "g",
        title,
        tag("line", x1=min(at.values()), x2=max(at.values()), y1=y, y2=y, class_="whisker"),
        tag("rect", x=low, y=y - 6, width=max(high - low, 1.0), height=12, class_="hill"),
        tag("line", x1=middle, x2=middle, y1=y - 7, y2=y + 7, class_="median"),
    )


def per_head(signals: Sequence[Signal], limits: Sequence[Limit]) -> Markup | None:
    """One number per head as dots on a shared scale, unhealthy zones shaded."""
    shown = [s for s in signals[:HEADS_SHOWN] if math.isfinite(s.value)]
    if not shown:
        return None
    name, row, left, width = shown[0].name, 20.0, 46.0, 440.0
    height = row * len(shown) + 30
    axis = axis_of(name, [s.value for s in shown], left, width - 12)
    zones = [_zone(axis, limit, 2, height - 24) for limit in limits if axis.low < limit.value < axis.high]
    dots = [
        join(
            [
                label(f"head {s.head}", left - 6, 14 + row * i, "tick", "end"),
                mark(axis(s.value), 10 + row * i, status(s.value, limits), 4),
                label(short(s.value), min(axis(s.value) + 9, width - 30), 14 + row * i, "value", "start"),
            ]
        )
        for i, s in enumerate(shown)
    ]
    words = ", ".join(f"head {s.head} {short(s.value)}" for s in shown)
    stems = rules([10 + row * i for i in range(len(shown))], axis.start, axis.stop, "stem")
    return drawing(
        width, height, *zones, stems, _bottom_ticks(axis, height - 22), *dots, label=f"{name} per head: {words}"
    )


def _zone(axis: Axis, limit: Limit, top: float, bottom: float) -> Markup:
    edge = axis(limit.value)
    start, stop = (axis.start, edge) if limit.side == "below" else (edge, axis.stop)
    return join(
        [
            tag(
                "rect",
                x=start,
                y=top,
                width=max(stop - start, 0.0),
                height=bottom - top,
                class_=f"zone {limit.severity}",
            ),
            tag("line", x1=edge, x2=edge, y1=top, y2=bottom, class_="limit"),
        ]
    )


def _bottom_ticks(axis: Axis, y: float) -> Markup:
    ticks = axis.ticks(5)
    places = [axis(t) for t in ticks]
    texts = [label(tick_text(t, axis.kind), x, y + 14, "tick", "middle") for t, x in zip(ticks, places, strict=True)]
    return join([rules([y], axis.start, axis.stop, "rail"), rules(places, y, y + 3, "rail", upright=True), *texts])


def growth(series: Series, limits: Sequence[Limit], events: Sequence[Event], *, wide: bool = False) -> Markup | None:
    """One number over the steps of a run, with its limit and the events on it."""
    finite = series.values[np.isfinite(series.values)]
    if not len(finite):
        return None
    name, (width, height) = series.name, ((900.0, 130.0) if wide else (440.0, 96.0))
    left, right, top, bottom = 46.0, width - 12, 8.0, height - 24
    axis_y = axis_of(name, finite, bottom, top, linear=not (finite > 0).all())
    steps = series.steps.astype(np.float64)
    axis_x = Axis(float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1), left, right)
    xs, ys = thin(steps, series.values, 4 * POINTS if wide else POINTS)
    lines = [
        tag("line", x1=left, x2=right, y1=axis_y(m.value), y2=axis_y(m.value), class_=f"limit {m.severity}")
        for m in limits
        if axis_y.low < m.value < axis_y.high
    ]
    ticks = axis_y.ticks(3)
    frame = [
        rules([axis_y(t) for t in ticks], left, right, "grid"),
        *(label(tick_text(t, axis_y.kind), left - 6, axis_y(t) + 3.5, "tick", "end") for t in ticks),
    ]
    last = len(ys) - 1 - int(np.argmax(np.isfinite(ys[::-1])))
    words = f"{name} from {short(float(finite[0]))} to {short(float(finite[-1]))} over steps {int(steps[0])} to {int(steps[-1])}"
    return drawing(
        width,
        height,
        *frame,
        *lines,
        *_event_lines(events, axis_x, top, bottom),
        line_through(axis_x, axis_y, xs, ys, "line"),
        mark(axis_x(float(xs[last])), axis_y(float(ys[last])), status(float(ys[last]), limits), 3.5),
        *_step_ticks(axis_x, bottom),
        label=words,
        class_="chart wide" if wide else "chart",
    )


def _step_ticks(axis: Axis, y: float) -> list[Markup]:
    ticks = [t for t in axis.ticks(5) if t == int(t)] or [axis.low]
    return [label(tick_text(t) if t < 1e4 else short(t), axis(t), y + 14, "tick", "middle") for t in ticks] + [
        label("step", axis.start - 6, y + 14, "tick unit", "end")
    ]


def _event_lines(events: Sequence[Event], axis: Axis, top: float, bottom: float) -> list[Markup]:
    inside = [e for e in events if axis.low <= e.step <= axis.high]
    by_place = groupby(inside, key=lambda e: round(axis(float(e.step))))
    marks = []
    for x, here in by_place:
        group = list(here)
        severity = "error" if any(e.kind == "non-finite" for e in group) else "note"
        title = tag("title", "; ".join(f"step {e.step}: {e.kind} {e.message}"[:200] for e in group[:4]))
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
    zones = [_zone(axis, m, 22, 46) for m in change.limits if axis.low < m.value < axis.high]
    x0, x1, y = axis(before), axis(after), 34
    apart = abs(x1 - x0) > 120  # both captions fit side by side, wherever they are anchored
    first, second = f"before {short(before)}", f"after {short(after)}"
    words = [label(first, x0, 14, "value", _anchor(x0, 50, 390))]
    words.append(label(second, x1, 14 if apart else 62, "value strong", _anchor(x1, 50, 390)))
    return drawing(
        440,
        92,
        *zones,
        tag("line", x1=x0, x2=x1, y1=y, y2=y, class_="move"),
        tag("circle", cx=x0, cy=y, r=5, class_="mark hollow"),
        tag("circle", cx=x1, cy=y, r=5, class_=f"mark {status(after, change.limits) or 'good'}"),
        *words,
        _bottom_ticks(axis, 70),
        label=visible(f"{signal}: before {short(before)}, after {short(after)}"),
    )


def run_series(evidence: Evidence) -> list[tuple[Series, Markup]]:
    """Loss, gradient norm and the other numbers of the whole run over its steps."""
    pictures = [(s, growth(s, evidence.limits(s.name), evidence.events(), wide=True)) for s in evidence.growth(MODEL)]
    return [(series, picture) for series, picture in pictures if picture is not None]
