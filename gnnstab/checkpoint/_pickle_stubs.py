"""Whole modules: what they say about their layers, and those that were pickled, read as records without their code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from gnnstab.checkpoint._naming import Unique, key_of, printable
from gnnstab.checkpoint._tally import Tally
from gnnstab.errors import LoadError
from gnnstab.layers import LAYERS, layer_of
from gnnstab.unpickling import Record

DEEPEST = 100
"""Levels of submodules."""

MOST_MODULES = 100_000

_KEPT = ("heads", "concat", "dropout", "out_channels", "edge_dim", "aggr", *(key for x in LAYERS for key in x.defaults))
"""What constructors of attention layers keep as attributes."""


def is_module(value: Any) -> bool:
    """True for the record of an ``nn.Module``."""
    return isinstance(value, Record) and all(isinstance(value.attributes.get(key), dict) for key in _PARTS)


def module_in(value: Any) -> Record | None:
    """The record of an ``nn.Module``, also of one that ``torch.compile`` wrapped: its wrapper is called with the module."""
    if isinstance(value, Record) and value.name == _COMPILED:
        parts = value.attributes.get("_modules")
        inner = value.arguments[:1] or [parts.get("_orig_mod") if isinstance(parts, Mapping) else None]
        value = next(filter(is_module, inner), value)
    return value if is_module(value) else None


_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"


def known_facts(root: nn.Module) -> dict[str, dict[str, Any]]:
    """Module path → configuration of every attention layer of a module with its code, as far as it is known."""
    found = ((name, layer_of(module), module) for name, module in root.named_modules(remove_duplicate=False))
    flat = {name: kind.facts(name, module, 0).flat() for name, kind, module in found if kind is not None}
    return {name: {key: value for key, value in facts.items() if value is not None} for name, facts in flat.items()}


def tensors_of(module: Record, tally: Tally) -> dict[str, Tensor]:
    """What ``state_dict()`` would give; raises `LoadError` when that is more than ``tally`` has left."""
    tensors: dict[str, Tensor] = {}
    unique = Unique()
    for path, part in _modules(module):
        tally.add(1 + sum(len(part.attributes[key]) for key in _PARTS))
        tally.spell(len(path))
        passing = part.attributes.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set) else ()
        buffers = ((key, value) for key, value in part.attributes["_buffers"].items() if key not in passing)
        for key, value in (*part.attributes["_parameters"].items(), *buffers):
            if isinstance(value, Tensor):
                name = _joined(path, key)
                tally.spell(len(name))
                tensors[unique(name)] = value
    return tensors


def facts_of(module: Record) -> dict[str, dict[str, Any]]:
    """Module path → configuration of every attention layer, as far as it holds plain values."""
    facts: dict[str, dict[str, Any]] = {}
    for path, part in _modules(module):
        if "heads" in part.attributes or any(part.kind == layer.kind for layer in LAYERS):
            values = {key: part.attributes.get(key) for key in _KEPT}
            facts[path] = {key: v for key, v in values.items() if isinstance(v, (bool, int, float, str))}
            facts[path]["kind"] = printable(part.kind)
    return facts


_PARTS = ("_parameters", "_buffers", "_modules")


def _modules(root: Record) -> Iterator[tuple[str, Record]]:
    """Every module with its path, in the order of ``named_modules``; one that contains itself ends in `LoadError`."""
    pending: list[tuple[str, Record, int]] = [("", root, 0)]
    count = 0
    while pending:
        path, module, depth = pending.pop()
        count += 1
        if depth > DEEPEST or count > MOST_MODULES:
            raise LoadError(f"holds a module with more than {DEEPEST} levels or {MOST_MODULES} submodules")
        yield path, module
        children = [(key, inner) for key, child in module.attributes["_modules"].items() if (inner := module_in(child))]
        pending.extend((_joined(path, key), child, depth + 1) for key, child in reversed(children))


def _joined(path: str, key: object) -> str:
    return f"{path}.{key_of(key)}" if path else key_of(key)
