"""How size travels through the network: activations forward, gradients backward."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gnnstab.records import SIGNALS, Diagnosis
from gnnstab.records.vocabulary import GRADIENT_INPUT_RMS, GRADIENT_OUTPUT_RMS, INPUT_RMS, MESSAGE_RMS, OUTPUT_RMS
from gnnstab.report.distribution import Array
from gnnstab.report.evidence import Evidence, Profile
from gnnstab.report.figures import _canvas as paper
from gnnstab.report.page_text import short

FORWARD = (OUTPUT_RMS, INPUT_RMS, MESSAGE_RMS)
BACKWARD = (GRADIENT_INPUT_RMS, GRADIENT_OUTPUT_RMS)


def depth_profile(diagnosis: Diagnosis) -> Figure:
    """RMS of activations (upper panel) and of gradients (lower panel) from the first to the last layer.

    Raises `NothingEvaluable` when neither was measured.
    """
    evidence = Evidence(diagnosis)
    groups = {"Forward: activations": FORWARD, "Backward: gradients": BACKWARD}
    measured = {
        title: [p for name in names if (p := evidence.profile(name)) is not None] for title, names in groups.items()
    }
    panels = [(title, profiles) for title, profiles in measured.items() if profiles]
    paper.need(panels, "activations or gradients of any layer")
    known = {layer for _, profiles in panels for profile in profiles for layer in profile.layers}
    layers = tuple(layer for layer in evidence.layers if layer in known)
    figure, axes = paper.sheet(0.9 + 2.35 * len(panels), len(panels), sharex=True)
    for ax, (title, profiles) in zip(axes, panels, strict=True):
        _draw(ax, profiles, layers)
        paper.head(ax, title, "RMS of an entry")
        paper.label_y(ax, "RMS")
    paper.name_layers(axes[-1].xaxis, layers, turned=True)
    axes[-1].set_xlim(-0.5, len(layers) - 0.5)
    return figure


def _draw(ax: Any, profiles: list[Profile], layers: tuple[str, ...]) -> None:
    drawn = 0
    for i, profile in enumerate(profiles):
        row = dict(zip(profile.layers, profile.values, strict=True))
        values = np.array([row.get(layer, np.nan) for layer in layers])
        values = np.where(np.isfinite(values) & (values >= 0), values, np.nan)
        zero = np.flatnonzero(values == 0)
        values = np.where(values > 0, values, np.nan)
        if not (values > 0).any() and not len(zero):
            continue
        drawn += 1
        size = 5 if len(layers) <= 40 else 2.2
        style = {**paper.series(i), "markersize": size, "linestyle": ("-", "--", ":")[i]}
        told = f"{SIGNALS[profile.name].title}{_travel(values)}"
        ax.plot(np.arange(len(layers)), values, linewidth=1.5, label=told, **style)
        _exact_zeros(ax, zero, style)
    if not drawn:
        paper.say_empty(ax)
        ax.set_yticks([])
        return
    paper.log_scale(ax)
    ax.grid(axis="y", color=paper.FAINT, linewidth=0.7)
    ax.legend(fontsize=paper.SIZE - 1, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _exact_zeros(ax: Any, places: NDArray[np.int64], style: dict[str, Any]) -> None:
    """Marks on the frame for the layers whose number is exactly 0, which has no place on a logarithmic axis."""
    if not len(places):
        return
    frame = ax.get_xaxis_transform()
    ax.plot(places, np.zeros(len(places)), transform=frame, clip_on=False, **{**style, "linestyle": ""})
    late = places[0] > ax.get_xlim()[1] / 2
    said = ax.annotate("exactly 0", (places[0], 0), xycoords=frame, xytext=(-6 if late else 6, 5), ha="right" if late else "left",
                       textcoords="offset points", fontsize=paper.SIZE - 1, color=paper.INK)  # fmt: skip
    said.set_in_layout(False)


def _travel(values: Array) -> str:
    """First over last layer, where both were measured: the number that says vanishing or exploding."""
    if len(values) < 2 or not np.isfinite(values[[0, -1]]).all():
        return ""
    return f"\nfirst/last = {short(float(values[0] / values[-1]))}"
