"""Attention scores and the weights that make them: distribution per head, range per layer, spectral norms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gnnstab.records import SIGNALS, Diagnosis
from gnnstab.records.vocabulary import (
    LOGIT_FROBENIUS,
    LOGIT_SPECTRAL,
    LOGIT_SPECTRAL_QK,
    SCORE_MAX,
    SCORE_MAX_ABS,
    SCORE_MIN,
)
from gnnstab.report.distribution import Distribution
from gnnstab.report.evidence import Evidence, status
from gnnstab.report.figures import _canvas as paper
from gnnstab.report.sections import degree_cap

MOST_HEADS = 16

_SPECTRAL = (LOGIT_SPECTRAL_QK, LOGIT_SPECTRAL, LOGIT_FROBENIUS)


def score_distribution(diagnosis: Diagnosis, layer: str) -> Figure:
    """The pre-softmax scores of every head of one layer: histogram or range, whatever was recorded.

    The bar under each head is as wide as the scores of a target may be apart before its attention is nearly one-hot.
    Raises `NothingEvaluable` when no score of this layer is finite.
    """
    evidence = Evidence(diagnosis)
    found = evidence.distributions(layer)[:MOST_HEADS]
    paper.need(found, f"finite scores of {layer}")
    figure, (ax,) = paper.sheet(1.3 + 0.5 * len(found))
    cap = degree_cap(evidence, layer)
    for row, d in enumerate(found):
        _ridge(ax, d, row)
        if math.isfinite(cap):
            ends = [d.middle - cap, d.middle + cap]
            ax.plot(ends, [row + 0.33] * 2, color=paper.INK, linewidth=2.5, solid_capstyle="butt")
    ax.set_yticks(range(len(found)), labels=["all heads" if d.head is None else f"head {d.head}" for d in found])
    ax.set_ylim(len(found) - 0.4, -1.0)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    told = f"; bar: ±{cap:.1f}, all that softmax can weigh at this in-degree" if math.isfinite(cap) else ""
    paper.label_x(ax, f"pre-softmax score, logit{told}")
    paper.head(ax, f"Scores of {layer}")
    return figure


def _ridge(ax: Any, d: Distribution, row: int) -> None:
    base = row + 0.3
    ax.axhline(base, color=paper.FAINT, linewidth=0.8, zorder=0)
    if len(d.edges):
        heights = np.append(d.counts, d.counts[-1]) / (d.counts.max() or 1.0)
        ax.fill_between(d.edges, base - 0.85 * heights, base, step="post", color=paper.HUES[0], alpha=0.55, linewidth=0)
    else:
        ax.plot([d.low, d.high], [row, row], color=paper.HUES[0], linewidth=6, alpha=0.55, solid_capstyle="butt")


def score_ranges(diagnosis: Diagnosis) -> Figure:
    """Smallest to largest score of every layer, all heads together, and how far a target's may lie from their mean.

    Raises `NothingEvaluable` when no layer's scores were measured.
    """
    evidence = Evidence(diagnosis)
    low, high, peak = (evidence.profile(name) for name in (SCORE_MIN, SCORE_MAX, SCORE_MAX_ABS))
    paper.need(peak or (low and high), "scores of any layer")
    measured = {layer for profile in (low, high, peak) if profile is not None for layer in profile.layers}
    layers = tuple(layer for layer in evidence.layers if layer in measured)
    figure, (ax,) = paper.sheet(3.4)
    ends = np.array([_ends(evidence, layer) for layer in layers])
    places, cap = np.arange(len(layers)), degree_cap(evidence)
    if not np.isfinite(ends).any():
        paper.say_empty(ax)
        ax.set_yticks([])
    else:
        ax.vlines(places, ends[:, 0], ends[:, 1], color=paper.HUES[0], linewidth=min(8.0, 380 / len(layers)), alpha=0.6)
        ax.axhline(0, color=paper.FAINT, linewidth=0.8, zorder=0)
        ax.set_yscale("symlog", linthresh=1.0)
        paper.round_ticks(ax.yaxis, float(np.nanmin(ends)), float(np.nanmax(ends)), "symlog")
        ax.grid(axis="y", color=paper.FAINT, linewidth=0.7)
        for side in (-cap, cap) if math.isfinite(cap) else ():
            ax.axhline(side, color=paper.INK, linewidth=1, linestyle=(0, (3, 3)))
    paper.name_layers(ax.xaxis, layers, turned=True)
    ax.set_xlim(-0.7, len(layers) - 0.3)
    paper.label_y(ax, "score, logit")
    told = f"; dashed: ±{cap:.1f}, all that softmax can weigh" if math.isfinite(cap) else ""
    paper.head(ax, f"Range of the pre-softmax scores{told}")
    return figure


def _ends(evidence: Evidence, layer: str) -> tuple[float, float]:
    peak = evidence.value(SCORE_MAX_ABS, layer)
    low, high = evidence.value(SCORE_MIN, layer), evidence.value(SCORE_MAX, layer)
    ends = (low, high) if not math.isnan(low + high) else (-peak, peak)
    return ends if all(map(math.isfinite, ends)) else (math.nan, math.nan)


def spectral_norms(diagnosis: Diagnosis) -> Figure:
    """The norm of W_qᵀW_k/√C of every head of every layer: how sharp attention can get per unit of input.

    Raises `NothingEvaluable` when no weights were seen.
    """
    evidence = Evidence(diagnosis)
    name = next((n for n in _SPECTRAL if any(evidence.heads(n, layer) for layer in evidence.layers)), None)
    paper.need(name, "spectral norm per head")
    assert name is not None
    layers = tuple(layer for layer in evidence.layers if evidence.heads(name, layer))
    figure, (ax,) = paper.sheet(3.4)
    heads = sorted({s.head for layer in layers for s in evidence.heads(name, layer) if s.head is not None})[:MOST_HEADS]
    values = np.array([[evidence.value(name, layer, h) for layer in layers] for h in heads])
    if not (np.isfinite(values) & (values > 0)).any():
        paper.say_empty(ax)
        ax.set_yticks([])
    else:
        _points(ax, values, heads)
        for limit in evidence.limits(name):
            if 0 < limit.value < 3 * np.nanmax(values):  # what the axis can show
                paper.limit_line(ax.axhline, limit, status(math.inf, [limit]))
    paper.name_layers(ax.xaxis, layers, turned=True)
    ax.set_xlim(-0.7, len(layers) - 0.3)
    paper.label_y(ax, paper.drawable(SIGNALS[name].unit))
    paper.head(ax, f"{SIGNALS[name].meaning.split(',')[0].split(' of a head')[0]} per head")
    return figure


def _points(ax: Any, values: Any, heads: list[int]) -> None:
    spread = min(0.12, 0.6 / max(len(heads), 1))
    size = 26 if values.shape[1] <= 40 else 9
    for i, (h, row) in enumerate(zip(heads, values, strict=True)):
        places = np.arange(len(row)) + (i - (len(heads) - 1) / 2) * spread
        ax.scatter(places, row, s=size, **paper.series(i), label=f"head {h}", linewidth=0)
    finite = values[np.isfinite(values) & (values > 0)]
    if finite.max() / finite.min() > 20:
        paper.log_scale(ax)
    else:
        ax.set_ylim(0, float(finite.max()) * 1.15)
    ax.grid(axis="y", color=paper.FAINT, linewidth=0.7)
    ax.legend(fontsize=paper.SIZE - 1, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handletextpad=0.2)
