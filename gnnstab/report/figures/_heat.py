"""One signal over layers and steps, as a heat map with the run's events on it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from gnnstab.records import SIGNALS, Diagnosis
from gnnstab.records.vocabulary import SCORE_MAX_ABS
from gnnstab.report.distribution import Array
from gnnstab.report.evidence import Evidence, Heat
from gnnstab.report.figures import _canvas as paper
from gnnstab.report.svg import is_share

MOST_COLUMNS = 600
"""Columns beyond what 800 pixels can show are merged, worst value first."""


def heat_map(diagnosis: Diagnosis, signal: str = SCORE_MAX_ABS) -> Figure:
    """Layers (rows, first layer on top) × steps of one recorded signal; events are marked above and in their row.

    Raises `NothingEvaluable` when no layer has this signal over steps.
    """
    evidence = Evidence(diagnosis)
    heat = evidence.heat(signal)
    paper.need(heat, f"{signal} over steps (record a run with gnnstab.Monitor)")
    assert heat is not None
    rows = len(heat.layers)
    figure, (ax,) = paper.sheet(
        min(1.9 + 0.28 * min(rows, paper.MOST_NAMES) + 0.012 * max(rows - paper.MOST_NAMES, 0), 8.0)
    )
    for spine in ax.spines.values():
        spine.set_visible(False)
    edges, values = _columns(heat)
    _paint(figure, ax, heat, edges, values)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_xlim(edges[0], edges[-1])
    paper.name_layers(ax.yaxis, heat.layers)
    _mark(figure, ax, evidence, heat, edges)
    paper.label_x(ax, "step")
    paper.head(ax, SIGNALS[signal].meaning[:1].upper() + SIGNALS[signal].meaning[1:])
    if len(heat.steps) == 1:
        ax.set_xticks(heat.steps)
    return figure


def _columns(heat: Heat) -> tuple[Array, Array]:
    """Edges (columns + 1) and values (layers, columns): one column per step, merged where there are too many."""
    steps = heat.steps.astype(np.float64)
    middles = (steps[1:] + steps[:-1]) / 2
    first, last = steps[0] - 0.5, steps[0] + 0.5
    if len(middles):
        first, last = 2 * steps[0] - middles[0], 2 * steps[-1] - middles[-1]
    edges = np.concatenate([[first], middles, [last]])
    if len(steps) <= MOST_COLUMNS:
        return edges, heat.values
    starts = np.unique(np.linspace(0, len(steps), MOST_COLUMNS, endpoint=False).astype(int))
    worst = np.fmax if SIGNALS[heat.name].rises else np.fmin
    return np.append(edges[starts], last), worst.reduceat(heat.values, starts, axis=1)


def _paint(figure: Figure, ax: Any, heat: Heat, edges: Array, values: Array) -> None:
    masked = np.ma.masked_invalid(values)
    ax.set_facecolor("#eceeee")
    norm = Normalize(0, 1) if is_share(heat.name) else _norm(masked)
    rows = np.arange(len(heat.layers) + 1) - 0.5
    mesh = ax.pcolormesh(
        edges, rows, masked, cmap="cividis" if SIGNALS[heat.name].rises else "cividis_r", norm=norm, rasterized=True
    )
    if masked.mask.all():
        paper.say_empty(ax)
        return
    bar = figure.colorbar(mesh, cax=ax.inset_axes((1.02, 0.0, 0.022, 1.0)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=paper.SIZE - 1, labelcolor=paper.INK, colors=paper.SOFT)
    if isinstance(norm, LogNorm):
        paper.round_ticks(bar.ax.yaxis, float(norm.vmin or 0.1), float(norm.vmax or 1.0))
    bar.set_label(SIGNALS[heat.name].unit or heat.name, fontsize=paper.SIZE, color=paper.SOFT)


def _norm(values: np.ma.MaskedArray[Any, np.dtype[np.float64]]) -> Normalize:
    """Logarithmic where all numbers are positive; widened where all are equal, so that a scale can be drawn."""
    if values.mask.all():
        return Normalize(0, 1)
    low, high = float(values.min()), float(values.max())
    if low > 0:
        return LogNorm(low if high > low else low / 2, high if high > low else high * 2)
    return Normalize(low, high if high > low else low + 1)


def _mark(figure: Figure, ax: Any, evidence: Evidence, heat: Heat, edges: Array) -> None:
    """A triangle above the map per step with events, and a cross in the row of a non-finite value."""
    inside = [e for e in evidence.events() if edges[0] <= e.step <= edges[-1]]
    kinds = ((False, paper.INK, "other event"), (True, paper.TONES["error"], "non-finite value"))
    handles = []
    frame = ax.get_xaxis_transform()
    for non_finite, colour, words in kinds:
        if steps := sorted({e.step for e in inside if (e.kind == "non-finite") == non_finite}):
            style = {"marker": "v", "s": 34, "color": colour, "clip_on": False, "zorder": 5, "label": words}
            handles.append(ax.scatter(steps, np.ones(len(steps)), transform=frame, **style))
    row = {layer: i for i, layer in enumerate(heat.layers)}
    places = [(e.step, evidence.owner(e.layer)) for e in inside if e.kind == "non-finite"]
    broken = [(step, row[owner]) for step, owner in places if owner in row]
    if broken:
        xs, ys = zip(*broken, strict=True)
        ax.scatter(xs, ys, marker="X", s=46, color=paper.TONES["error"], edgecolor="white", linewidth=0.9, zorder=6)
    if handles:
        style = {"ncols": 2, "fontsize": paper.SIZE - 1, "frameon": False, "handletextpad": 0.3}
        figure.legend(handles=handles, loc="outside lower right", **style)
