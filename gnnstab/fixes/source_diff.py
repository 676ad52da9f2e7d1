"""The change as a unified diff of the user's own source file, where the constructor call can be found in it."""

from __future__ import annotations

import ast
import difflib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import nn


class _Edit(NamedTuple):
    """A replacement of source text: from (line, column) to (line, column), lines from 0, columns in UTF-8 bytes."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def diff(model: nn.Module, name: str, **options: Any) -> str | None:
    """A unified diff that makes the change, or None when it cannot be located for certain.

    Only fixes that are arguments of a constructor are located: ``dropout``, ``beta``, ``score-cap``, ``qk-norm``,
    ``fp32-attention`` and ``aggregation``. Nothing is written: the text is to be read, or given to ``patch``.
    """
    wanted = _wanted(name, options)
    if wanted is None:
        return None
    call_name, new_name, keywords = wanted
    parts = [_file_diff(path, classes, call_name, new_name, keywords) for path, classes in _sources(model).items()]
    text = "".join(part for part in parts if part)
    return text or None


def _wanted(name: str, options: dict[str, Any]) -> tuple[str, str, dict[str, Any]] | None:
    """Name of the call to look for, its new name, and the keywords to set."""
    conv, stable = "TransformerConv", "StableTransformerConv"
    table: dict[str, tuple[str, str, dict[str, Any]]] = {
        "dropout": (conv, conv, {"dropout": options.get("p", 0.1)}),
        "beta": (conv, conv, {"beta": True}),
        "score-cap": (conv, stable, {"score_cap": options.get("cap", 3.0)}),
        "qk-norm": (conv, stable, {"qk_norm": True}),
        "fp32-attention": (conv, stable, {"fp32_attention": True}),
        "aggregation": ("super().__init__", "super().__init__", {"aggr": options.get("aggr", "mean")}),
    }
    return table.get(name)


def _sources(model: nn.Module) -> dict[Path, set[str]]:
    """Source file → names of the model's classes in it; library code is left out."""
    found: dict[Path, set[str]] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__module__.partition(".")[0] in ("torch", "torch_geometric", "gnnstab"):
            continue
        try:
            path = inspect.getsourcefile(kind)
        except TypeError:
            path = None
        if path and Path(path).is_file():
            found.setdefault(Path(path), set()).add(kind.__name__)
    return found


def _file_diff(path: Path, classes: set[str], call: str, new: str, keywords: dict[str, Any]) -> str:
    source = path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    edits = [
        edit
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name in classes
        for found in _calls(node, call, keywords)
        for edit in _edits(found, call, new, keywords)
    ]
    if not edits:
        return ""
    changed = _edited(source, edits)
    if new != call:
        changed = (
            f"from gnnstab.nn import {new}\n{changed}"
            if "from __future__" not in changed
            else _after_future(changed, new)
        )
    shown = path.name
    lines = difflib.unified_diff(
        source.splitlines(keepends=True), changed.splitlines(keepends=True), f"a/{shown}", f"b/{shown}"
    )
    return "".join(lines)


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


def _edits(call: ast.Call, old: str, new: str, keywords: dict[str, Any]) -> list[_Edit]:
    edits = []
    if new != old:
        edits.append(_Edit((call.func.lineno - 1, call.func.col_offset), _end(call.func), new))
    present = {k.arg: k.value for k in call.keywords}
    missing = {k: v for k, v in keywords.items() if k not in present}
    for key, value in keywords.items():
        if key in present:
            node = present[key]
            edits.append(_Edit((node.lineno - 1, node.col_offset), _end(node), repr(value)))
    if missing:
        text = ", ".join(f"{k}={v!r}" for k, v in missing.items())
        last = [*call.args, *(k.value for k in call.keywords)]
        where = max((_end(n) for n in last), default=_end(call.func))
        edits.append(_Edit(where, where, f", {text}") if last else _Edit(where, (where[0], where[1] + 1), f"({text}"))
    return edits


def _end(node: ast.expr) -> tuple[int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno - 1, node.end_col_offset


def _edited(source: str, edits: list[_Edit]) -> str:
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for edit in sorted(edits, reverse=True):
        (top, left), (bottom, right) = edit.start, edit.end
        lines[top : bottom + 1] = [lines[top][:left] + edit.text.encode() + lines[bottom][right:]]
    return b"".join(lines).decode()


def _after_future(source: str, name: str) -> str:
    lines = source.splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if line.startswith("from __future__"))
    return "".join([*lines[: last + 1], f"\nfrom gnnstab.nn import {name}\n", *lines[last + 1 :]])
