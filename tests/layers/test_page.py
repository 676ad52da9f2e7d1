"""docs/layers.md tells what the adapters tell."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gnnstab.layers import LAYERS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


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
