"""The change as a unified diff of the user's own source file, where its place can be found there for certain."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.forward_calls import Unclear
from gnnstab.fixes.identity_diff import identity_edits, reached
from gnnstab.fixes.model_structure import attention_layers, sum_aggregators
from gnnstab.fixes.sum_diff import sum_edits
from gnnstab.fixes.text_edits import Edit, edited, end_of, start_of
from gnnstab.layers import LAYERS
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


Sources = Mapping[Path, Mapping[str, Sequence["nn.Module"]]]
"""Source file → names of the model's classes in it → the modules of that class."""


def diff(model: nn.Module, name: str, layers: Sequence[LayerFacts] = (), **options: Any) -> str | None:
    """A unified diff that makes the change, or None when it cannot be located for certain.

    Located are arguments of a constructor (``dropout``, ``beta``, ``score-cap``, ``qk-norm``, ``fp32-attention``, ``aggregation``),
    for ``residual`` and ``pre-norm-residual`` the lines ``x = act(self.conv(x, …))`` of a ``forward``, with the norms that they
    need, and for ``mean-aggregation-root`` and ``norm-after-sum`` the sum that a ``forward`` returns; the widths of the last are
    those of ``layers``. Nothing is written: the text is to be read, or given to ``patch``.
    """
    sources = _sources(model)
    if name in ("mean-aggregation-root", "norm-after-sum"):
        return _sum_diff(model, sources, layers, norm=name == "norm-after-sum")
    if name in ("residual", "pre-norm-residual"):
        norms = name == "pre-norm-residual"
        weight = float(options.get("weight", 1.0 if norms else 0.1))
        return _identity_diff(model, sources, weight, norms=norms)
    wanted = _wanted(name, options)
    if wanted is None:
        return None
    return "".join(_constructor_diff(path, classes, *wanted) for path, classes in sources.items()) or None


def _identity_diff(model: nn.Module, sources: Sources, weight: float, *, norms: bool) -> str | None:
    parts = []
    try:
        # Every layer or none: a stack with a gap in its identity path is another change than the one that was judged.
        if sum(reached(own) for classes in sources.values() for own in classes.values()) != len(
            attention_layers(model)
        ):
            return None
        for path, classes in sources.items():
            source, tree = _parsed(path)
            own = [
                edit
                for node in _classes(tree, classes)
                for edit in identity_edits(tree, node, classes[node.name], weight, norms=norms)
            ]
            parts.append(_unified(path, source, edited(source, own)))
    except (Unclear, FixError):
        return None
    return "".join(parts) or None


def _sum_diff(model: nn.Module, sources: Sources, layers: Sequence[LayerFacts], *, norm: bool) -> str | None:
    facts = {layer.name: layer for layer in layers}
    parts = []
    try:
        summing = {module: facts[name] for name, module in sum_aggregators(model)}
        for path, classes in sources.items():
            source, tree = _parsed(path)
            edits: list[Edit] = []
            for node in _classes(tree, classes):
                own = [summing.pop(module) for module in classes[node.name] if module in summing]
                if not own:
                    continue
                edits += sum_edits(tree, node, own, norm=norm)
                found = _calls(node, "super().__init__", {"aggr": ""})
                if not norm and len(found) != 1:
                    return None
                edits += [e for call in found if not norm for e in _edits(call, "", "", {"aggr": "mean"})]
            parts.append(_unified(path, source, edited(source, edits)))
        return None if summing else "".join(parts) or None
    except (Unclear, FixError, KeyError):
        return None


def _wanted(name: str, options: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """Name of the call to look for, its new name, and the keywords to set."""
    conv, stable = LAYERS[0].kind, LAYERS[0].stable
    table: dict[str, tuple[str, str, dict[str, Any]]] = {
        "dropout": (conv, conv, {"dropout": options.get("p", 0.1)}),
        "beta": (conv, conv, {"beta": True}),
        "score-cap": (conv, stable, {"score_cap": options.get("cap", 3.0)}),
        "qk-norm": (conv, stable, {"qk_norm": True}),
        "fp32-attention": (conv, stable, {"fp32_attention": True}),
        "aggregation": ("super().__init__", "super().__init__", {"aggr": options.get("aggr", "mean")}),
    }
    return table.get(name)


def _sources(model: nn.Module) -> Sources:
    """Where the classes of the model are written; library code is left out."""
    found: dict[Path, dict[str, list[nn.Module]]] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__module__.partition(".")[0] in ("torch", "torch_geometric", "gnnstab"):
            continue
        try:
            path = inspect.getsourcefile(kind)
        except TypeError:
            path = None
        if path and Path(path).is_file():
            found.setdefault(Path(path), {}).setdefault(kind.__name__, []).append(module)
    return found


def _parsed(path: Path) -> tuple[str, ast.Module]:
    """Text and syntax tree; an empty tree where the file is no Python."""
    source = path.read_text(encoding="utf-8")
    try:
        return source, ast.parse(source)
    except SyntaxError:
        return source, ast.Module([], [])


def _classes(tree: ast.Module, names: Collection[str]) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in names]


def _constructor_diff(path: Path, classes: Collection[str], call: str, new: str, keywords: dict[str, Any]) -> str:
    source, tree = _parsed(path)
    edits = [
        edit
        for node in _classes(tree, classes)
        for found in _calls(node, call, keywords)
        for edit in _edits(found, call, new, keywords)
    ]
    if not edits:
        return ""
    changed = edited(source, edits)
    if new != call:
        changed = (
            f"from gnnstab.nn import {new}\n{changed}"
            if "from __future__" not in changed
            else _after_future(changed, new)
        )
    return _unified(path, source, changed)


def _unified(path: Path, source: str, changed: str) -> str:
    before, after = source.splitlines(keepends=True), changed.splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, f"a/{path.name}", f"b/{path.name}"))


def _calls(node: ast.ClassDef, call: str, keywords: dict[str, Any]) -> list[ast.Call]:
    found = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            written = ast.unparse(inner.func)
            spread = any(k.arg is None for k in inner.keywords)
            # `**options` may already hold the keyword, and setting it twice is an error.
            if not spread and (written == call or (call[0].isupper() and written.endswith("." + call))):
                found.append(inner)
    if "aggr" in keywords:
        found = [c for c in found if any(k.arg == "aggr" for k in c.keywords)]
    return found


def _edits(call: ast.Call, old: str, new: str, keywords: dict[str, Any]) -> list[Edit]:
    edits = []
    if new != old:
        edits.append(Edit(start_of(call.func), end_of(call.func), new))
    present = {k.arg: k.value for k in call.keywords}
    missing = {k: v for k, v in keywords.items() if k not in present}
    for key, value in keywords.items():
        if key in present:
            node = present[key]
            edits.append(Edit(start_of(node), end_of(node), repr(value)))
    if missing:
        text = ", ".join(f"{k}={v!r}" for k, v in missing.items())
        last = [*call.args, *(k.value for k in call.keywords)]
        where = max((end_of(n) for n in last), default=end_of(call.func))
        edits.append(Edit(where, where, f", {text}") if last else Edit(where, (where[0], where[1] + 1), f"({text}"))
    return edits


def _after_future(source: str, name: str) -> str:
    lines = source.splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if line.startswith("from __future__"))
    return "".join([*lines[: last + 1], f"\nfrom gnnstab.nn import {name}\n", *lines[last + 1 :]])
