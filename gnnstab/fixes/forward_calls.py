"""Where a user's own ``forward`` calls attention layers, in a form whose meaning is certain."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import NamedTuple


class Unclear(Exception):
    """The code is not of a form that can be changed for certain."""


class LayerCall(NamedTuple):
    """``x = …self.conv(x, …)…``: a whole statement that puts one attention layer around ``x``."""

    statement: ast.Assign
    argument: ast.Name
    """The ``x`` that the layer is called with."""

    attribute: str
    picked: str
    """How the layer is picked from its list, ``i``; empty for a single layer and for a loop over the list itself."""

    loop: ast.For | None
    """The loop over the list itself."""

    behind: tuple[ast.Assign, ...] = ()
    """The lines ``x = act(x)`` that follow: an activation, a norm or a dropout, behind which the identity belongs."""


class _Source(NamedTuple):
    """What a loop variable stands for."""

    attribute: str
    picked: str
    loop: ast.For | None


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef:
    """The method of that name; raises `Unclear` when the class does not write one itself."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == name:
            return item
    raise Unclear


def layer_calls(forward: ast.FunctionDef, attributes: Collection[str]) -> list[LayerCall]:
    """Every call of the attention layers that ``self`` holds under these names.

    Raises `Unclear` when a name is never called, or when one of the calls is not ``x = act(self.conv(x, …))``, the result of
    which is then put through lines ``x = act(x)`` at most.
    """
    loops = dict(_loops(forward))
    found: dict[ast.stmt, LayerCall] = {}
    for statement in ast.walk(forward):
        if not isinstance(statement, ast.stmt) or hasattr(statement, "body"):
            continue
        inside = [c for c in ast.walk(statement) if isinstance(c, ast.Call)]
        own = [(c, s) for c in inside if (s := _source(c.func, loops)) and s.attribute in attributes]
        if own:
            found[statement] = _checked(statement, own)
    # A layer in a condition, a loop's head or a comprehension is none of these statements, and stays without an identity path.
    called = [
        c
        for c in ast.walk(forward)
        if isinstance(c, ast.Call) and (s := _source(c.func, loops)) and s.attribute in attributes
    ]
    if len(called) != len(found) or {call.attribute for call in found.values()} != set(attributes):
        raise Unclear
    after = dict(_neighbours(forward))
    return [call._replace(behind=tuple(_behind(call, after, found))) for call in found.values()]


def _behind(call: LayerCall, after: dict[ast.stmt, ast.stmt], found: Collection[ast.stmt]) -> Iterator[ast.Assign]:
    """The lines that go on with the result of a call; raises `Unclear` where one is more than ``x = act(x)``."""
    line, x = after.get(call.statement), call.argument.id
    while line is not None and line not in found and _assigns(line, x):
        if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
            raise Unclear
        if not isinstance(line.value, ast.Call) or len(uses(line, x)) != 1:
            raise Unclear
        yield line
        line = after.get(line)


def uses(statement: ast.Assign, name: str) -> list[ast.Name]:
    """Where the value of an assignment reads a name."""
    return [n for n in ast.walk(statement.value) if isinstance(n, ast.Name) and n.id == name]


def _loops(forward: ast.FunctionDef) -> Iterator[tuple[str, _Source]]:
    """Loop variable and what it runs over: ``for conv in self.convs``, ``for i, conv in enumerate(self.convs)``."""
    for loop in (node for node in ast.walk(forward) if isinstance(node, ast.For)):
        over, target = loop.iter, loop.target
        if isinstance(target, ast.Name) and (attribute := _attribute(over)):
            yield target.id, _Source(attribute, "", loop)
        elif isinstance(over, ast.Call) and ast.unparse(over.func) == "enumerate" and isinstance(target, ast.Tuple):
            attribute = _attribute(over.args[0]) if len(over.args) == 1 and not over.keywords else ""
            if attribute and len(target.elts) == 2:
                yield ast.unparse(target.elts[1]), _Source(attribute, ast.unparse(target.elts[0]), None)


def _attribute(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return ""


def _source(called: ast.expr, loops: dict[str, _Source]) -> _Source | None:
    if isinstance(called, ast.Name):
        return loops.get(called.id)
    if isinstance(called, ast.Subscript) and (attribute := _attribute(called.value)):
        return _Source(attribute, ast.unparse(called.slice), None)
    return _Source(attribute, "", None) if (attribute := _attribute(called)) else None


def _checked(statement: ast.stmt, own: list[tuple[ast.Call, _Source]]) -> LayerCall:
    """The statement's call, where it is ``x = …`` with one layer called on ``x``, which is named nowhere else."""
    if not (isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call) and len(own) == 1):
        raise Unclear
    layer, source = own[0]
    argument, target = layer.args[0] if layer.args else None, statement.targets[0]
    if not (isinstance(argument, ast.Name) and isinstance(target, ast.Name) and argument.id == target.id):
        raise Unclear
    if len(statement.targets) != 1 or len(uses(statement, target.id)) != 1:
        raise Unclear
    return LayerCall(statement, argument, *source)


def _neighbours(node: ast.AST) -> Iterator[tuple[ast.stmt, ast.stmt]]:
    """Statements that follow each other in one block."""
    for inner in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(inner, name, None)
            if isinstance(block, list):
                yield from pairwise(block)


def _assigns(statement: ast.stmt, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store) for n in ast.walk(statement))
