"""Draws docs/images/attention.svg: what `gnnstab.attention` returns for a `GPSConv` on a small graph.

python docs/attention_figure.py
"""

from __future__ import annotations

import io
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch_geometric.nn import GATConv, GPSConv

import gnnstab

PLACE = Path(__file__).parent / "images" / "attention.svg"
NODES, GREY = 8, "#808080"
"""Number of nodes; a grey that can be read on white and on black."""


def picture() -> str:
    """The figure as SVG: one panel per call, a square per edge, shaded by its attention."""
    torch.manual_seed(4)
    model = GPSConv(16, GATConv(16, 16), heads=2)
    ring = torch.arange(NODES)
    edges = torch.cat([torch.stack([ring, (ring + 1) % NODES]), torch.stack([ring, (ring + 3) % NODES])], dim=1)
    calls = gnnstab.attention(model, (3 * torch.randn(NODES, 16), edges))
    plt.rcParams.update({"svg.hashsalt": "gnnstab", "svg.fonttype": "none", "font.size": 9})
    figure, panels = plt.subplots(1, len(calls), figsize=(6.6, 3.1), layout="constrained")
    for panel, call in zip(panels, calls, strict=True):
        cells = torch.full((NODES, NODES), torch.nan)
        cells[call.target, call.source] = call.attention[:, 0]
        shown = panel.imshow(cells, vmin=0, vmax=1, cmap="viridis")
        panel.set_facecolor("#80808030")
        panel.set_title(f"{call.layer}: {call.kind}, head 0", color=GREY)
        panel.set_xlabel("source", color=GREY)
        panel.set_ylabel("target (each row sums to 1)", color=GREY)
        panel.tick_params(colors=GREY)
        for side in panel.spines.values():
            side.set_color(GREY)
    bar = figure.colorbar(shown, ax=panels, label="attention", shrink=0.9)
    bar.ax.tick_params(colors=GREY)
    bar.ax.yaxis.label.set_color(GREY)
    bar.outline.set_edgecolor(GREY)
    figure.patch.set_alpha(0)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()


if __name__ == "__main__":
    PLACE.write_text(picture(), encoding="utf-8")
