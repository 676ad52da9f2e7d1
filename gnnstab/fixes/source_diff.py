"""The change as a unified diff of the user's own source file, where its place can be found there for certain."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gnnstab.errors import FixError
from gnnstab.fixes.forward_calls import Unclear
from gnnstab.fixes.identity import PreNormResidual, Residual
from gnnstab.fixes.identity_diff import identity_edits, reached
from gnnstab.fixes.model_structure import attention_layers, sum_aggregators
from gnnstab.fixes.sum_diff import sum_edits
from gnnstab.fixes.text_edits import Edit, edited, end_of, start_of
from gnnstab.layers import LAYERS
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


Edits = Callable[["_File", ast.ClassDef, Sequence["nn.Module"]], list[Edit]]
"""(file, a class in it, the modules of that class) → the edits in it; raises `Unclear` where a place is not certain."""


class _File(NamedTuple):
    """A source file with classes of the model."""

    path: Path
    source: str
    tree: ast.Module
    classes: dict[ast.ClassDef, list[nn.Module]]
    """The modules of each class."""


def diff(model: nn.Module, name: str, layers: Sequence[LayerFacts] = (), **options: Any) -> str | None:
    """A unified diff that makes the change, or None when it cannot be located for certain.

    Located are arguments of a constructor (``dropout``, ``beta``, ``score-cap``, ``qk-norm``, ``fp32-attention``, ``aggregation``),
    for ``residual`` and ``pre-norm-residual`` the lines ``x = act(self.conv(x, …))`` of a ``forward``, with the norms that they
    need, and for ``mean-aggregation-root`` and ``norm-after-sum`` the sum that a ``forward`` returns; the widths of the last are
    those of ``layers``. Nothing is written: the text is to be read, or given to ``patch``.
    """
    files = _files(model)
    try:
        if name in ("mean-aggregation-root", "norm-after-sum"):
            edits = _of_sums(model, files, layers, norm=name == "norm-after-sum")
        elif fix := next((fix for fix in (Residual(), PreNormResidual()) if fix.name == name), None):
            edits = _of_identities(model, files, fix.chosen(options), norms=fix.norms)
        else:
            edits = _of_arguments(name, options)
        return "".join(_diff(file, edits) for file in files) or None
    except (Unclear, FixError):
        return None


def _diff(file: _File, edits: Edits) -> str:
    found = [edit for node, own in file.classes.items() for edit in edits(file, node, own)]
    before = file.source.splitlines(keepends=True)
    after = edited(file.source, list(dict.fromkeys(found))).splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, f"a/{file.path.name}", f"b/{file.path.name}"))


def _of_identities(model: nn.Module, files: Sequence[_File], weight: float, *, norms: bool) -> Edits:
    # Every layer or none: a stack with a gap in its identity path is another change than the one that was judged.
    if sum(reached(own) for file in files for own in file.classes.values()) != len(attention_layers(model)):
        raise Unclear
    return lambda file, node, own: identity_edits(file.tree, node, own, weight, norms=norms)


def _of_sums(model: nn.Module, files: Sequence[_File], layers: Sequence[LayerFacts], *, norm: bool) -> Edits:
    facts = {layer.name: layer for layer in layers}
    summing = {module: facts.get(name) for name, module in sum_aggregators(model)}
    if None in summing.values() or not set(summing) <= {m for f in files for own in f.classes.values() for m in own}:
        raise Unclear

    def edits(file: _File, node: ast.ClassDef, own: Sequence[nn.Module]) -> list[Edit]:
        found = [known for module in own if (known := summing.get(module)) is not None]
        if not found:
            return []
        if norm:
            return sum_edits(file.tree, node, found, norm=True)
        calls = _calls(node, _SUPER, {"aggr": ""})
        if len(calls) != 1:
            raise Unclear
        return [*sum_edits(file.tree, node, found, norm=False), *_edits(calls[0], "", "", {"aggr": "mean"})]

    return edits


_SUPER = "super().__init__"


def _of_arguments(name: str, options: Mapping[str, Any]) -> Edits:
    """Keywords of the constructor of the first kind, of its stable counterpart in its place, or of a module's base class."""
    conv, stable = LAYERS[0].kind, LAYERS[0].stable
    table: dict[str, tuple[str, str, dict[str, Any]]] = {
        "dropout": (conv, conv, {"dropout": options.get("p", 0.1)}),
        "beta": (conv, conv, {"beta": True}),
        "score-cap": (conv, stable, {"score_cap": options.get("cap", 3.0)}),
        "qk-norm": (conv, stable, {"qk_norm": True}),
        "fp32-attention": (conv, stable, {"fp32_attention": True}),
        "aggregation": (_SUPER, _SUPER, {"aggr": options.get("aggr", "mean")}),
    }
    if name not in table:
        raise Unclear
    call, new, keywords = table[name]

    def edits(file: _File, node: ast.ClassDef, own: Sequence[nn.Module]) -> list[Edit]:
        found = [edit for one in _calls(node, call, keywords) for edit in _edits(one, call, new, keywords)]
        return [_imported(file.source, new), *found] if found and new != call else found

    return edits


def _imported(source: str, name: str) -> Edit:
    """The import at the top of the file, or below the last one ``from __future__``."""
    future = [i for i, line in enumerate(source.splitlines()) if line.startswith("from __future__")]
    place, blank = ((future[-1] + 1, 0), "\n") if future else ((0, 0), "")
    return Edit(place, place, f"{blank}from gnnstab.nn import {name}\n")


def _files(model: nn.Module) -> list[_File]:
    """Where the classes of the model are written; library code is left out, and what is no Python."""
    modules: dict[Path, dict[str, list[nn.Module]]] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__module__.partition(".")[0] in ("torch", "torch_geometric", "gnnstab"):
            continue
        try:
            path = inspect.getsourcefile(kind)
        except TypeError:
            path = None
        if path and Path(path).is_file():
            modules.setdefault(Path(path), {}).setdefault(kind.__name__, []).append(module)
    files = []
    for file, named in modules.items():
        source = file.read_text(encoding="utf-8")
        try:
            tree = ast.parse(source)
        except SyntaxError:
            continue
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in named]
        files.append(_File(file, source, tree, {node: named[node.name] for node in nodes}))
    return files


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
