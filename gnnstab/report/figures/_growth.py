"""What `gnnstab scale` measured, drawn: each signal over in-degree, layer by layer, with the in-degree at which it breaks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    PRECISION_FP16_HEADROOM,
    SCORE_MAX_ABS,
)
from gnnstab.report.evidence import Limit
from gnnstab.report.figures._change import scaling_curve
from gnnstab.report.figures._writing import write_figures

if TYPE_CHECKING:
    from pathlib import Path

    from gnnstab.verification.scaling import Scaling

DRAWN = (ATTENTION_ONE_HOT_SHARE, ATTENTION_ENTROPY, PRECISION_FP16_HEADROOM, SCORE_MAX_ABS)
"""Signals that have a limit, in the order in which they are drawn."""


def growth_figures(scaling: Scaling) -> Iterator[tuple[str, Figure]]:
    """(file name without ending, figure) of every signal that was measured and has a limit.

    The breaking points are those of ``scaling.limits``; one beyond the measured range is extrapolated.
    """
    for signal in DRAWN:
        curves = {layer: scaling.curve(signal, layer) for layer in scaling.layers}
        measured = {layer: curve for layer, curve in curves.items() if len(curve[0])}
        # Layers of one model see the same graphs; one that was not measured on all of them has no place on the axis.
        sizes = max((degrees for degrees, _ in measured.values()), key=len, default=())
        values = {layer: ys for layer, (xs, ys) in measured.items() if len(xs) == len(sizes)}
        if not values:
            continue
        own = [limit for limit in scaling.limits if limit.signal == signal]
        lines = {(limit.line, limit.rises) for limit in own}
        yield (
            f"scaling-{signal.replace('.', '-').replace('_', '-')}",
            scaling_curve(
                list(sizes),
                {layer: list(ys) for layer, ys in values.items()},
                signal=signal,
                limits=[Limit(line, "warning", "above" if rises else "below") for line, rises in sorted(lines)],
                breaking={limit.layer: limit.degree for limit in own},
                quantity="mean in-degree",
            ),
        )


def write_growth(scaling: Scaling, folder: str | os.PathLike[str]) -> list[Path]:
    """Write `growth_figures` as PNG and SVG; returns the paths in order.

    The folder is made when it is missing. Raises `UsageError` when it cannot be written to.
    """
    return write_figures(growth_figures(scaling), folder)
