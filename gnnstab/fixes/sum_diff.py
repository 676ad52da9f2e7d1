"""The root term and the norm of a sum aggregation as edits of the user's own class."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from gnnstab.fixes.forward_calls import Unclear, method
from gnnstab.fixes.identity_diff import class_of_nn
from gnnstab.fixes.text_edits import Edit, end_of
from gnnstab.records import LayerFacts


def sum_edits(tree: ast.Module, node: ast.ClassDef, owners: Sequence[LayerFacts], *, norm: bool) -> list[Edit]:
    """Edits for ``self.propagate(…) + self.lin_root(x)``; with ``norm``, a LayerNorm around the sum.

    ``owners`` are the layers of that class. Raises `Unclear` when their widths were not seen or differ, or when ``forward`` does
    anything to the sum or to ``x`` but return it.
    """
    widths = {(layer.in_channels, layer.out_channels) for layer in owners}
    (wide, narrow), *others = widths
    if others or wide is None or narrow is None:
        raise Unclear
    forward, constructor = method(node, "forward"), method(node, "__init__")
    if "self.lin_root" in ast.unparse(node) or len(forward.args.args) < 2:
        raise Unclear
    x, call = forward.args.args[1].arg, _returned(forward)
    if any(isinstance(n, ast.Name) and n.id == x and isinstance(n.ctx, ast.Store) for n in ast.walk(forward)):
        raise Unclear
    parts = {"lin_root": f"{class_of_nn(tree, 'Linear')}({wide[1]}, {narrow})"}
    if norm:
        parts["sum_norm"] = f"{class_of_nn(tree, 'LayerNorm')}({narrow})"
    last = constructor.body[-1]
    made = "".join(f"\n{' ' * last.col_offset}self.{name} = {part}" for name, part in parts.items())
    before, behind = (call.lineno - 1, call.col_offset), end_of(call)
    return [
        Edit(end_of(last), end_of(last), made),
        *([Edit(before, before, "self.sum_norm(")] if norm else []),
        Edit(behind, behind, f"{')' * norm} + self.lin_root({x})"),
    ]


def _returned(forward: ast.FunctionDef) -> ast.Call:
    """The one call of ``self.propagate``, whose result ``forward`` returns as it is."""
    calls = [n for n in ast.walk(forward) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.propagate"]
    last, before = forward.body[-1], forward.body[-2] if len(forward.body) > 1 else None
    if len(calls) != 1 or not isinstance(last, ast.Return):
        raise Unclear
    if last.value is calls[0]:
        return calls[0]
    if not isinstance(before, (ast.Assign, ast.AnnAssign)) or before.value is not calls[0]:
        raise Unclear
    target = before.target if isinstance(before, ast.AnnAssign) else before.targets[0]
    if last.value is None or ast.unparse(target) != ast.unparse(last.value):
        raise Unclear
    return calls[0]
