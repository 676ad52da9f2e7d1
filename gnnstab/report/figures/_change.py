"""What changes the numbers: a fix (before and after), and the size of the graph (where a limit will break)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gnnstab.errors import UsageError
from gnnstab.records import SIGNALS, Diagnosis
from gnnstab.report.distribution import Array
from gnnstab.report.escape import name as short_name
from gnnstab.report.evidence import BeforeAfter, Evidence, Limit
from gnnstab.report.figures import _canvas as paper
from gnnstab.report.page_text import meaning, sentence, short
from gnnstab.report.summary import verdict_words
from gnnstab.report.svg import is_share, scale_of

VERDICT_COLOURS = {"confirmed": "#009e73", "made-worse": "#d55e00", "inconclusive": "#b87a00"}


FAR = 100.0
"""A crossing further out than so many times the largest measured size is no prediction any more."""


def before_after(diagnosis: Diagnosis) -> Figure:
    """Every fix that was tried: its signal before (hollow) and after (filled) against the limits, one panel per signal.

    Raises `NothingEvaluable` when no fix was tried.
    """
    changes = Evidence(diagnosis).before_after()
    paper.need(changes, "fix that was tried (run with verify=True)")
    groups: dict[str, list[BeforeAfter]] = {}
    seen = {(c.fix.fix, c.fix.change, c.fix.signal, c.fix.before, c.fix.after): c for c in changes}
    for change in seen.values():  # a fix of two causes was tried once
        groups.setdefault(change.fix.signal, []).append(change)
    heights = [0.5 + 0.36 * len(group) for group in groups.values()]
    figure, axes = paper.sheet(0.6 + sum(heights) + 0.5 * len(groups), len(groups), height_ratios=heights)
    for ax, (signal, group) in zip(axes, groups.items(), strict=True):
        _dumbbells(ax, signal, group)
    return figure


def _dumbbells(ax: Any, signal: str, group: list[BeforeAfter]) -> None:
    drawn = []
    for row, change in enumerate(group):
        before, after = change.fix.before, change.fix.after
        told = f"{verdict_words(change.fix.verdict)}: {short(before)} to {short(after)}"
        place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": paper.SIZE - 1}
        beside = ax.annotate(told, (1.02, row), color=paper.INK, **place)
        if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
            beside.set_color(paper.SOFT)
            continue
        beside.set(annotation_clip=False)
        drawn += [before, after]
        colour = VERDICT_COLOURS.get(change.fix.verdict, paper.SOFT)
        ax.plot([before, after], [row, row], color=paper.SOFT, linewidth=1.6, zorder=2)
        ax.scatter([before], [row], s=46, facecolor="white", edgecolor=paper.SOFT, linewidth=1.5, zorder=3)
        ax.scatter([after], [row], s=46, color=colour, zorder=4)
    ax.set_yticks(
        range(len(group)), labels=[paper.drawable(short_name(c.fix.fix, 24)) for c in group], parse_math=False
    )
    ax.set_ylim(len(group) - 0.4, -0.6)
    ax.grid(axis="x", color=paper.FAINT, linewidth=0.7)
    _scale(ax, signal, drawn, group[0].limits)
    paper.head(ax, sentence(meaning(short_name(signal, 60))))
    paper.label_x(ax, (SIGNALS[signal].unit or signal) if signal in SIGNALS else short_name(signal, 60))


def _scale(ax: Any, signal: str, drawn: list[float], limits: Sequence[Limit]) -> None:
    if not drawn:
        paper.say_empty(ax, "no finite number")
        ax.set_xticks([])
        return
    if is_share(signal):
        ax.set_xlim(0, 1)
    elif signal in SIGNALS and scale_of(signal) == "log" and min(drawn) > 0:
        paper.log_scale(ax, "x")
    low, high = ax.get_xlim()
    for limit in limits:
        if low < limit.value < high:
            paper.limit_line(ax.axvline, limit, zorder=1)


def scaling_curve(
    sizes: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    signal: str,
    limits: Sequence[Limit] = (),
    breaking: Mapping[str, float] | None = None,
    quantity: str = "median in-degree",
) -> Figure:
    """A signal at growing graphs, with the size at which each curve is predicted to cross its limit.

    Args:
        sizes: In-degrees or node counts, positive, shape (n,).
        curves: Label → values at those sizes, shape (n,).
        signal: The signal's name, for its unit and meaning.
        limits: Limits to draw.
        breaking: Label → predicted size; fitted as a power law through the measured points when omitted.
        quantity: What the sizes are.

    Raises `UsageError` when a curve and the sizes differ in length, `NothingEvaluable` when there is no point.
    """
    paper.need(len(sizes) and curves, "sizes to draw a curve over")
    xs = np.asarray(sizes, dtype=np.float64)
    figure, (ax,) = paper.sheet(3.8)
    ends = [float(xs.max())]
    for i, (label, values) in enumerate(curves.items()):
        ys = np.asarray(values, dtype=np.float64)
        if ys.shape != xs.shape:
            raise UsageError(f"curve {label!r} has {len(ys)} values for {len(xs)} sizes")
        predicted = (
            [crossing(xs, ys, limit) for limit in limits] if breaking is None else [breaking.get(label, math.nan)]
        )
        place = min(filter(math.isfinite, predicted), default=math.nan)
        ends += _curve(ax, xs, ys, paper.drawable(short_name(label, 40)), i, place)
    finite = [y for values in curves.values() for y in values if math.isfinite(y) and y > 0]
    ax.set_xscale("log")
    if not finite:
        paper.say_empty(ax)
    elif scale_of(signal) == "log":
        paper.log_scale(ax)
    for limit in limits:
        paper.limit_line(ax.axhline, limit)
        ax.annotate(
            f"{limit.severity}: {short(limit.value)}",
            (1.0, limit.value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            fontsize=paper.SIZE - 1,
            color=paper.SOFT,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
        )
    ax.set_xlim(float(xs.min()) / 1.15, max(ends) * 1.15)
    ax.set_xticks([float(x) for x in xs], labels=[short(float(x)) for x in xs], minor=False)
    ax.minorticks_off()
    ax.grid(color=paper.FAINT, linewidth=0.7)
    paper.label_x(ax, quantity)
    paper.label_y(ax, SIGNALS[signal].unit or signal)
    paper.head(ax, f"{sentence(meaning(signal))} as the graph grows")
    ax.legend(fontsize=paper.SIZE - 1, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _curve(ax: Any, xs: Array, ys: Array, label: str, i: int, place: float) -> list[float]:
    style = paper.series(i)
    near = math.isfinite(place) and place <= FAR * xs.max()
    told = f"{label}\nbreaks at {short(place)}" if near else label
    ax.plot(xs, ys, **style, markersize=5, linewidth=1.5, label=told)
    if not near:
        return []
    ax.axvline(place, color=style["color"], linewidth=1, linestyle=":")
    return [place]


def crossing(sizes: Array, values: Array, limit: Limit) -> float:
    """Where the values cross ``limit``: between two measured sizes if they do, else on a power law through all of them.

    NaN when the values move away from the limit, or fewer than two positive ones are known.
    """
    good = np.isfinite(values) & (values > 0) & (sizes > 0)
    x, y = np.log(sizes[good]), np.log(values[good])
    if len(x) < 2 or limit.value <= 0:
        return math.nan
    target = math.log(limit.value)
    bad = y > target if limit.side == "above" else y < target
    if bad[0]:
        return float(np.exp(x[0]))
    if bad.any():
        k = int(np.argmax(bad))
        share = (target - y[k - 1]) / (y[k] - y[k - 1])
        return float(np.exp(x[k - 1] + share * (x[k] - x[k - 1])))
    slope, offset = np.polyfit(x, y, 1)
    towards = slope > 0 if limit.side == "above" else slope < 0
    if not towards or abs(slope) < 1e-9:
        return math.nan
    place = (target - offset) / slope
    # A crossing that the fit puts inside the measured range did not happen there: it lies beyond the last size.
    return float(np.exp(min(max(place, x[-1]), 700.0)))
