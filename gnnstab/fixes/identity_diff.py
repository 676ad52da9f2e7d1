"""The identity path of ``residual`` and ``pre-norm-residual`` as edits of the user's own class."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gnnstab.errors import FixError
from gnnstab.fixes.forward_calls import LayerCall, Unclear, layer_calls, method, uses
from gnnstab.fixes.identity import keeps_width
from gnnstab.fixes.model_structure import attention_layers
from gnnstab.fixes.text_edits import Edit, end_of, start_of
from gnnstab.layers import layer_of

if TYPE_CHECKING:
    from torch import nn


class _Held(NamedTuple):
    """What an attribute of attention layers holds."""

    width: int
    listed: bool
    """True for a ModuleList."""

    number: int
    """How many."""


def reached(owners: Sequence[nn.Module]) -> int:
    """How many attention layers the owners, all of one class, hold in attributes and lists of their own."""
    return len(owners) * sum(held.number for held in _held(owners).values())


def identity_edits(
    tree: ast.Module, node: ast.ClassDef, owners: Sequence[nn.Module], weight: float, *, norms: bool
) -> list[Edit]:
    """Edits for ``x = weight * x + act(conv(x))`` in the class ``node`` of a file; with ``norms``, a LayerNorm before each layer.

    ``owners`` are the modules of that class; empty when they hold no attention layers. Raises `Unclear` when a call of a layer is
    not of a form that can be changed for certain, or when a layer changes the width.
    """
    layers = _held(owners)
    if not layers:
        return []
    forward = method(node, "forward")
    calls = layer_calls(forward, layers)
    factor = "" if weight == 1.0 else f"{weight} * "
    edits = []
    for call in calls:
        last = call.behind[-1] if call.behind else call.statement
        place = start_of(last.value)
        edits.append(Edit(place, place, f"{factor}{call.argument.id} + "))
        edits += _renamed(call, forward)
    if norms:
        norm_class = class_of_nn(tree, "LayerNorm")
        edits += [edit for call in calls for edit in _normed(call, layers[call.attribute].listed, forward)]
        edits += [_constructed(method(node, "__init__"), name, held, norm_class) for name, held in layers.items()]
    return list(dict.fromkeys(edits))


def _renamed(call: LayerCall, forward: ast.FunctionDef) -> list[Edit]:
    """``h = conv(h)``, ``h = act(h)`` → ``h_new = conv(h)``, ``h = h + act(h_new)``: the identity needs the old ``h`` in the last line."""
    new = f"{call.argument.id}_new"
    if call.behind and any(isinstance(n, ast.Name) and n.id == new for n in ast.walk(forward)):
        raise Unclear
    written = [line.targets[0] for line in (call.statement, *call.behind)[:-1]]
    read = [name for line in call.behind for name in uses(line, call.argument.id)]
    return [Edit(start_of(node), end_of(node), new) for node in (*written, *read)]


def _held(owners: Sequence[nn.Module]) -> dict[str, _Held]:
    found = [{name: held for name, child in owner.named_children() if (held := _layers(child))} for owner in owners]
    if any(other != found[0] for other in found):
        raise Unclear
    return found[0] if found else {}


def _layers(child: Any) -> _Held | None:
    """None for a module that is neither an attention layer nor a list of such."""
    try:
        inside: list[Any] = [layer for _, layer in attention_layers(child)]
    except FixError:
        return None
    listed = inside != [child]
    if listed and type(child).__name__ != "ModuleList":
        return None
    kinds = [(layer_of(layer), layer) for layer in inside]
    widths = {width for kind, layer in kinds if kind for width in kind.facts("", layer, 0).in_channels or (-1,)}
    if len(widths) != 1 or not all(keeps_width(layer) for layer in inside) or (listed and list(child) != inside):
        raise Unclear
    return _Held(widths.pop(), listed, len(inside))


def _normed(call: LayerCall, listed: bool, forward: ast.FunctionDef) -> list[Edit]:
    """``x`` → ``self.convs_norms[i](x)``; a loop over the list runs over the norms beside it."""
    before, behind = start_of(call.argument), end_of(call.argument)
    name = f"self.{call.attribute}_norm{'s' * listed}{f'[{call.picked}]' if call.picked else ''}"
    edits = []
    if call.loop is not None:
        name, norms = f"{ast.unparse(call.loop.target)}_norm", name
        if any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(forward)):
            raise Unclear
        target, over = end_of(call.loop.target), call.loop.iter
        edits.append(Edit(target, target, f", {name}"))
        edits.append(Edit(start_of(over), end_of(over), f"zip({ast.unparse(over)}, {norms})"))
    return [*edits, Edit(before, behind, f"{name}({call.argument.id})")]


def _constructed(constructor: ast.FunctionDef, attribute: str, held: _Held, norm_class: str) -> Edit:
    """The norms, made in the line below the last one that has to do with the layers: a list may be filled after it was made."""
    here = f"self.{attribute}"
    made = [s for s in ast.walk(constructor) if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == here]
    told = [s for s in constructor.body if any(isinstance(n, ast.expr) and ast.unparse(n) == here for n in ast.walk(s))]
    inside = made and made[0] not in constructor.body
    empty = made and isinstance(made[0].value, ast.Call) and not made[0].value.args and held.listed
    # A list that nothing here fills is filled somewhere else, perhaps later.
    if (
        len(made) != 1
        or f"{here}_norm" in ast.unparse(constructor)
        or (len(told) > 1 if inside else empty and len(told) == 1)
    ):
        raise Unclear
    norm = f"{norm_class}({held.width})"
    if held.listed:
        norm = f"{norm_class.removesuffix('LayerNorm')}ModuleList([{norm} for _ in {here}])"
    last = made[0] if inside else told[-1]
    place = end_of(last)
    return Edit(place, place, f"\n{' ' * last.col_offset}{here}_norm{'s' * held.listed} = {norm}")


def class_of_nn(tree: ast.Module, name: str) -> str:
    """How the file would write ``torch.nn.<name>``; raises `Unclear` when it imports neither torch nor its ``nn``."""
    ways = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            ways += [f"{alias.asname or 'nn'}.{name}" for alias in node.names if alias.name == "nn"]
        if isinstance(node, ast.Import):
            ways += [f"{alias.asname}.{name}" for alias in node.names if alias.name == "torch.nn" and alias.asname]
            ways += [f"{alias.asname or 'torch'}.nn.{name}" for alias in node.names if alias.name == "torch"]
    if not ways:
        raise Unclear
    return min(ways, key=len)
