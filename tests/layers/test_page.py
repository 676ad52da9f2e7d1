"""docs/layers.md tells what the adapters tell, and what is measured of them here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from gnnstab.layers import LAYERS, Layer, layer_named
from layers.measured import COLUMNS, FILE, measured, spread

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
COMPILED, SPREAD = "under `torch.compile`", "static over measured spread"
"""The first is slow, and tested in test_other_faces.py."""
KINDS = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.kind)
WITHIN = {
    "TransformerConv": (1 / 1.3, 1.3),
    "GATv2Conv": (1 / 1.3, 1.3),
    "GATConv": (1.0, 2.0),
    "HGTConv": (1 / 1.3, 1.3),
    "MultiheadAttention": (1 / 1.3, 1.3),
}
"""How far the spread of fresh scores that the weights tell may lie from the measured one."""

HINT = "run python tests/layers/measured.py and python docs/generate.py"
ROWS = json.loads(FILE.read_text(encoding="utf-8"))


@KINDS
def test_the_table_shows_what_is_measured(kind: Layer) -> None:
    row, told = measured(kind, [name for name in COLUMNS if name != COMPILED]), ROWS[kind.kind]
    assert list(told) == list(COLUMNS)
    told_spread = row.pop(SPREAD)
    assert row == {name: told[name] for name in row}, HINT
    assert (told_spread == "–") == (told[SPREAD] == "–") == (kind.kind not in WITHIN)
    if kind.kind in WITHIN:
        assert float(told_spread) == pytest.approx(float(told[SPREAD]), abs=0.03), HINT


@pytest.mark.parametrize("sizes", [(32, 4, 16), (64, 1, 64), (128, 8, 8)])
@pytest.mark.parametrize("kind", WITHIN)
def test_the_static_spread_is_that_of_fresh_layers_of_any_size(kind: str, sizes: tuple[int, int, int]) -> None:
    low, high = WITHIN[kind]
    assert low <= float(spread(layer_named(kind), *sizes)) <= high


@KINDS
def test_no_kind_is_seen_in_part_or_changed(kind: Layer) -> None:
    row = ROWS[kind.kind]
    assert row["seen live"] == "scores and attention"
    assert row["scores equal the layer's own"] == ("to 1e-6" if kind.fused else "bit by bit")
    assert row["output and gradients"] == "identical"


def test_the_page_holds_the_table_as_it_is_now() -> None:
    spec = importlib.util.spec_from_file_location("layer_table", DOCS / "layer_table.py")
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    rows = table.rows()
    assert rows in (DOCS / "layers.md").read_text(encoding="utf-8"), "run python docs/generate.py"
    assert len(rows.splitlines()) == len(LAYERS) + 2
    assert len({line.replace("\\|", "").count("|") for line in rows.splitlines()}) == 1
