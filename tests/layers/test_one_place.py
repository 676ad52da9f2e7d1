"""What a layer is stands in one room: nobody else spells its parameters, its class or the formula of its scores."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gnnstab.layers import LAYERS

ROOT = Path(__file__).resolve().parent.parent.parent
PART = re.compile(r"lin_(query|key|value|skip|edge|beta)|att_(src|dst|edge)")
NEEDS_THE_CLASS = {
    "gnnstab/demo.py": "builds a model of its own",
    "gnnstab/demo_files.py": "writes a file with a model of its own",
    "gnnstab/nn/__init__.py": "offers a layer",
    "gnnstab/nn/stable_transformer_conv.py": "is a layer itself",
}
"""Files that may import a layer's class or name its parts, and why."""


def sources() -> Iterator[Path]:
    for folder in ("gnnstab", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if (
                not path.is_relative_to(ROOT / "gnnstab" / "layers")
                and str(path.relative_to(ROOT)) not in NEEDS_THE_CLASS
            ):
                yield path


def spelled(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every name, attribute and string of a file, docstrings and texts about a rule left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value
        elif isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.alias):
            yield node.lineno, node.name


def test_no_other_room_names_a_parameter_of_a_layer() -> None:
    lines = ((path, line) for path in sources() for line in path.read_text(encoding="utf-8").splitlines())
    assert not [(str(path), line.strip()) for path, line in lines if PART.search(line)]


def test_no_other_room_spells_the_class_of_a_layer() -> None:
    kinds = {layer.kind for layer in LAYERS} | {layer.stable for layer in LAYERS if layer.stable}
    found = ((path, *place) for path in sources() for place in spelled(path))
    assert not [(str(path), line, text) for path, line, text in found if any(kind in text for kind in kinds)]


def test_the_guards_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        '"""A TransformerConv."""\nfrom torch_geometric.nn import TransformerConv\nx = "TransformerConv(...)"\n'
    )
    assert {line for line, text in spelled(path) if "TransformerConv" in text} == {2, 3}
    assert PART.search("conv.lin_query.weight")


def test_every_adapter_stands_in_a_file_of_its_own() -> None:
    homes = [type(layer).__module__ for layer in LAYERS]
    assert len(set(homes)) == len(LAYERS)
    assert all(re.fullmatch(r"gnnstab\.layers\.\w+", home) for home in homes)
    assert len({layer.kind for layer in LAYERS}) == len(LAYERS)
