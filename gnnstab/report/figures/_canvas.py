"""The paper that every figure is drawn on: size, type, colours that the colour-blind tell apart, layer names on axes."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine

from gnnstab.errors import NothingEvaluable
from gnnstab.report.escape import apart, visible
from gnnstab.report.evidence import Limit
from gnnstab.report.svg import Axis

WIDTH = 8.0
"""Inches; at 100 dots per inch 800 pixels, the width at which every figure must be readable."""

LONGEST_TITLE = 78
"""Characters of a title in one line."""

SIZE = 9.0
"""Points of ordinary text."""

INK, SOFT, FAINT = "#1b1f22", "#5a6369", "#d9dedb"

HUES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6100", "#444444", "#b07aa1")
"""Okabe and Ito's colours, without the yellow that paper swallows; read together with `MARKERS`."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Shapes that say the same as the colours."""

TONES = {"error": "#d55e00", "warning": "#b87a00", "info": "#0072b2", "": "#0072b2"}

MOST_NAMES = 30
"""Up to so many layers are named on an axis; beyond, they are numbered."""


def sheet(height: float, rows: int = 1, **grid: Any) -> tuple[Figure, list[Any]]:
    """An empty figure of `WIDTH` × ``height`` inches with ``rows`` axes below each other."""
    figure = Figure(
        figsize=(WIDTH, height), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.08), facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, 1, squeeze=False, **grid)[:, 0])
    for ax in axes:
        ax.tick_params(labelsize=SIZE - 1, colors=SOFT, labelcolor=INK)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color(FAINT)
    return figure, axes


def head(ax: Any, title: str, unit: str = "") -> None:
    """Title at the left above an axis, with the unit of what it shows."""
    text = textwrap.fill(drawable(f"{title}, {unit}" if unit else title), LONGEST_TITLE)
    ax.set_title(text, loc="left", fontsize=SIZE + 1, fontweight="bold", color=INK, parse_math=False, pad=9)


def label_x(ax: Any, text: str) -> None:
    """Name of the horizontal axis."""
    ax.set_xlabel(drawable(text), fontsize=SIZE, color=SOFT, parse_math=False)


def label_y(ax: Any, text: str) -> None:
    """Name of the vertical axis."""
    ax.set_ylabel(drawable(text), fontsize=SIZE, color=SOFT, parse_math=False)


def log_scale(ax: Any, side: str = "y") -> None:
    """A logarithmic axis of a decade at least, so that what is nearly flat looks flat, with a few round ticks."""
    getattr(ax, f"set_{side}scale")("log")
    low, high = getattr(ax, f"get_{side}lim")()
    if high / low < 10:
        low, high = np.sqrt(low * high) / 3.2, np.sqrt(low * high) * 3.2
        getattr(ax, f"set_{side}lim")(low, high)
    round_ticks(getattr(ax, f"{side}axis"), low, high)


def round_ticks(axis: Any, low: float, high: float, kind: str = "log") -> None:
    """Powers of ten, with their doubles and fives where few fit, as the only ticks of a logarithmic axis."""
    ticks, texts = zip(*Axis(low, high, 0.0, 1.0, kind).labels(6), strict=True)
    axis.set_ticks(ticks, labels=texts)
    axis.set_ticks([], minor=True)


def name_layers(axis: Any, layers: Sequence[str], *, turned: bool = False) -> None:
    """Layer names, or beyond `MOST_NAMES` their numbers, as the ticks of ``ax.xaxis`` or ``ax.yaxis``."""
    count = len(layers)
    if count > MOST_NAMES:
        stride = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if count / s <= 21)
        axis.set_ticks(np.arange(0, count, stride))
        axis.set_label_text("layer, counted from 0", fontsize=SIZE, color=SOFT)
        return
    shared, tails = apart(list(layers), 22)
    slanted = turned and max(map(len, tails)) > 6 and count > 3
    style = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axis.set_ticks(np.arange(count), labels=[drawable(tail) for tail in tails], parse_math=False, **style)
    told = drawable(f"layer in {shared}") if shared else "layer"
    axis.set_label_text(told, fontsize=SIZE, color=SOFT, parse_math=False)


def series(i: int) -> dict[str, Any]:
    """Colour and marker of the series with that number."""
    return {"color": HUES[i % len(HUES)], "marker": MARKERS[i % len(MARKERS)]}


def limit_line(draw: Callable[..., object], limit: Limit, severity: str = "", **style: Any) -> None:
    """The dashed line of a limit; ``draw`` is ``ax.axhline`` or ``ax.axvline``."""
    draw(limit.value, color=TONES.get(severity or limit.severity, SOFT), linewidth=1, linestyle=(0, (3, 3)), **style)


def say_empty(ax: Any, text: str = "no finite value was recorded") -> None:
    """Say in the middle of an axis why it is empty."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=SIZE, color=SOFT)


def need(found: object, what: str) -> None:
    """Raise `NothingEvaluable` when there is nothing to draw."""
    if not found:
        raise NothingEvaluable(f"the diagnosis holds no {what}; nothing to draw")


def drawable(text: str) -> str:
    """``text`` with everything hidden, and everything that the font has no glyph for, spelled out."""
    return "".join(c if ord(c) in _glyphs() else f"\\u{ord(c):04x}" for c in visible(text))


@lru_cache(maxsize=1)
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
