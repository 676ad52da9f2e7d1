"""The table of docs/layers.md: what the adapters say of themselves, and what tests/layers/measured.py measured of them."""

from __future__ import annotations

import json
from pathlib import Path

from gnnstab.layers import LAYERS, Layer

MEASURED = Path(__file__).resolve().parent / "layers.json"


def rows() -> str:
    """The table, one row per kind; what is the same for every kind stands in the page's text."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    columns = [name for name in measured[LAYERS[0].kind] if len({row[name] for row in measured.values()}) > 1]
    head = ["kind", "softmax in", *columns[:-1], "static spread or bound of the scores", columns[-1]]
    lines = [
        head,
        ["---"] * len(head),
        *(_row(kind, [measured[kind.kind][name] for name in columns]) for kind in LAYERS),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(kind: Layer, measured: list[str]) -> list[str]:
    *cells, fixes = measured
    where = ", ".join(f"`{place}`" for place in kind.softmax_in) or "fused; computed once more from the inputs"
    return [f"`{kind.kind}`", where, *cells, kind.static.replace("|", "\\|"), fixes]
