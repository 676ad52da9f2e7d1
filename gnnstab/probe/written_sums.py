"""How the model's own code writes a sum of rows: the line, what holds the sum, and the index or the matrix that names the groups."""

from __future__ import annotations

import ast
import linecache
from types import FrameType

_CALLS = ("index_add", "scatter_add", "scatter_reduce", "index_put", "scatter", "scatter_sum")
_PRODUCTS = ("mm", "matmul", "bmm", "spmm")
_MODULES = ("torch", "torch.sparse", "torch_scatter", "utils", "torch_geometric.utils")
_SHAPES = ("unsqueeze", "view", "reshape", "expand", "expand_as", "repeat")
"""Methods that bring an index into the shape of the values."""


def written_sum(frame: FrameType | None) -> dict[str, str | int]:
    """``file``, ``line``, ``code``, and as code ``total``, and ``groups`` or ``matrix``, of the sum that a frame is about to take.

    Empty where the source is not at hand; without those that the line does not show.
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
            for part in ast.walk(statement):
                if isinstance(part, (ast.Call, ast.BinOp)) and part.lineno <= frame.f_lineno <= (part.end_lineno or 0):
                    found = {**_names(part, statement), **found}
    return found


def _names(part: ast.Call | ast.BinOp, statement: ast.Assign | ast.Expr | ast.Return) -> dict[str, str]:
    """Empty for what is no sum by an index or a matrix."""
    names = {}
    target = statement.targets[0] if isinstance(statement, ast.Assign) and statement.value is part else None
    if isinstance(part, ast.BinOp):
        total, matrix = target, part.left if isinstance(part.op, ast.MatMult) else None
    else:
        called = part.func.attr if isinstance(part.func, ast.Attribute) else ast.unparse(part.func)
        owner = part.func.value if isinstance(part.func, ast.Attribute) else None
        function = owner is None or ast.unparse(owner) in _MODULES
        into = part.args[0] if function and part.args else owner
        total = target or (into if called.endswith("_") else None)
        matrix = into if called in _PRODUCTS else None
        if called.rstrip("_") in _CALLS:
            names = _groups(part, called, function)
        elif matrix is None:
            return {}
    if matrix is not None:
        names["matrix"] = ast.unparse(matrix)
    if isinstance(total, (ast.Name, ast.Attribute)) and names:
        names["total"] = ast.unparse(total)
    return names


def _groups(call: ast.Call, called: str, function: bool) -> dict[str, str]:
    """The index by which a call adds up, as code; PyG's and torch_scatter's functions take no operand to add to."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    puts = called.startswith("index_put")
    given = call.args[function and called not in ("scatter", "scatter_sum") :]
    index = named.get("indices" if puts else "index") or (given[not puts] if len(given) > (not puts) else None)
    if puts and isinstance(index, (ast.Tuple, ast.List)) and len(index.elts) == 1:
        index = index.elts[0]
    return {} if index is None or isinstance(index, (ast.Tuple, ast.List)) else {"groups": ast.unparse(_bare(index))}


def _bare(index: ast.expr) -> ast.expr:
    """The index without what brings it into the shape of the values: ``dst`` of ``dst[:, None].expand_as(m)``."""
    if isinstance(index, ast.Call) and isinstance(index.func, ast.Attribute) and index.func.attr in _SHAPES:
        return _bare(index.func.value)
    if isinstance(index, ast.Subscript) and isinstance(index.slice, ast.Tuple):
        whole = all(isinstance(p, ast.Slice) or ast.unparse(p) in ("None", "...") for p in index.slice.elts)
        return _bare(index.value) if whole else index
    return index
