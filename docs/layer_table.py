"""The table of docs/layers.md: what the adapters say of themselves, and what tests/layers/measured.py measured of them."""

from __future__ import annotations

import json
from pathlib import Path

from gnnstab.layers import LAYERS, Layer

MEASURED = Path(__file__).resolve().parent / "layers.json"


def rows() -> str:
    """The table, one row per kind."""
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    columns = list(measured[LAYERS[0].kind])
    head = ["kind", "softmax in", *columns[:-1], "static spread or bound of the scores", columns[-1]]
    lines = [head, ["---"] * len(head), *(_row(kind, measured[kind.kind]) for kind in LAYERS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(kind: Layer, measured: dict[str, str]) -> list[str]:
    *cells, fixes = measured.values()
    where = ", ".join(f"`{place}`" for place in kind.softmax_in) or "fused; computed once more from the inputs"
    return [f"`{kind.kind}`", where, *cells, kind.static.replace("|", "\\|"), fixes]
