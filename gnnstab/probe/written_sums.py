"""How the model's own code writes a sum by an index: the line, what holds the sum, and what names the groups."""

from __future__ import annotations

import ast
import linecache
from types import FrameType

_CALLS = ("index_add", "scatter_add", "scatter_reduce", "index_put")
_SHAPES = ("unsqueeze", "view", "reshape", "expand", "expand_as", "repeat")
"""Methods that bring an index into the shape of the values."""


def written_sum(frame: FrameType | None) -> dict[str, str | int]:
    """``file``, ``line``, ``code``, and as code ``total`` and ``groups`` of the sum that a frame is about to take.

    Empty where the source is not at hand; without ``total`` or ``groups`` where the line does not show them.
    """
    lines = [] if frame is None else linecache.getlines(frame.f_code.co_filename)
    if frame is None or not lines:
        return {}
    found: dict[str, str | int] = {
        "file": frame.f_code.co_filename, "line": frame.f_lineno, "code": lines[frame.f_lineno - 1].strip(),
    }  # fmt: skip
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        return found
    for statement in ast.walk(tree):
        if isinstance(statement, (ast.Assign, ast.Expr, ast.Return)):
            for call in ast.walk(statement):
                if isinstance(call, ast.Call) and call.lineno <= frame.f_lineno <= (call.end_lineno or 0):
                    found |= _names(call, statement)
    return found


def _names(call: ast.Call, statement: ast.Assign | ast.Expr | ast.Return) -> dict[str, str]:
    """Empty for a call that is no sum by an index."""
    method = call.func
    if not isinstance(method, ast.Attribute) or method.attr.rstrip("_") not in _CALLS:
        return {}
    names = {}
    function = ast.unparse(method.value) == "torch"
    given = call.args[function:]
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    puts = method.attr.startswith("index_put")
    index = named.get("indices" if puts else "index") or (given[not puts] if len(given) > (not puts) else None)
    if puts and isinstance(index, (ast.Tuple, ast.List)) and len(index.elts) == 1:
        index = index.elts[0]
    if index is not None and not isinstance(index, (ast.Tuple, ast.List)):
        names["groups"] = ast.unparse(_bare(index))
    into = call.args[0] if function and call.args else method.value
    target = statement.targets[0] if isinstance(statement, ast.Assign) and statement.value is call else None
    total = target or (into if method.attr.endswith("_") else None)
    if isinstance(total, (ast.Name, ast.Attribute)):
        names["total"] = ast.unparse(total)
    return names


def _bare(index: ast.expr) -> ast.expr:
    """The index without what brings it into the shape of the values: ``dst`` of ``dst[:, None].expand_as(m)``."""
    if isinstance(index, ast.Call) and isinstance(index.func, ast.Attribute) and index.func.attr in _SHAPES:
        return _bare(index.func.value)
    if isinstance(index, ast.Subscript) and isinstance(index.slice, ast.Tuple):
        whole = all(isinstance(p, ast.Slice) or ast.unparse(p) in ("None", "...") for p in index.slice.elts)
        return _bare(index.value) if whole else index
    return index
