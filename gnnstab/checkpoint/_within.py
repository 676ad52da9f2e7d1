"""Tensors that a module or an optimizer keeps where a state dict has no name for them: in lists, dicts, plain attributes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from gnnstab.checkpoint._naming import printable
from gnnstab.checkpoint._tally import Tally
from gnnstab.errors import LoadError
from gnnstab.unpickling import Record

LISTS = (list, tuple, deque, set, frozenset)
DEEPEST = 300
"""Levels: a submodule stands three levels below the module that holds it."""

MOST_NODES = 1_000_000

_PARTS = frozenset({"_parameters", "_buffers", "_modules"})


def tensors_within(root: Any, shown: str, tally: Tally, seen: set[int]) -> Iterator[tuple[str, Tensor, bool]]:
    """(path, tensor, whether it belongs to a graph's data) of every tensor in nested containers and objects.

    ``seen`` keeps what was looked at, so that nothing in a file is looked at twice.

    Raises `LoadError` for nesting beyond `DEEPEST`, and for more than `MOST_NODES` things or more characters than ``tally`` has left.
    """
    pending: list[tuple[str, Any, int, bool]] = [("", root, 0, False)]
    count = 0
    while pending:
        path, node, depth, data = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            yield path, node, data
            continue
        data = data or (isinstance(node, Record) and node.name.startswith("torch_geometric.data."))
        children = [(key, child) for key, child in _children(node) if isinstance(child, _LOOKED_AT)]
        count += len(children)
        if depth > DEEPEST or count > MOST_NODES:
            raise LoadError(f"{shown}: is nested deeper than {DEEPEST} levels, or holds more than {MOST_NODES} objects")
        for key, child in reversed(children):
            name = path if key in _PARTS else f"{path}.{printable(key)}".lstrip(".")
            tally.spell(len(name))
            pending.append((name, child, depth + 1, data))


_LOOKED_AT = (Tensor, Mapping, *LISTS, nn.Module, Record)


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, Record):
        for part in (node.attributes, node.mapping, node.arguments, node.sequence, {"state": node.state}):
            yield from _children(part)
    elif isinstance(node, nn.Module):
        yield from vars(node).items()
    elif isinstance(node, Mapping):
        yield from node.items()
    elif isinstance(node, LISTS):
        yield from enumerate(node)
