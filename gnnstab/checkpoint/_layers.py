"""Attention layers, found by the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

from torch import Tensor

from gnnstab.checkpoint._tensors import identity, unreadable
from gnnstab.layers import LAYERS, Layer, StoredLayer
from gnnstab.records import Blind

_OTHER_KINDS = tuple((kind.hint, kind.kind) for kind in LAYERS if kind.hint)
"""(last part of a key, attention layer that has it), for kinds that no adapter recovers from a file."""


def find_layers(tensors: Mapping[str, Tensor]) -> tuple[list[StoredLayer], list[Blind], dict[str, str]]:
    """Layers in order of appearance, what could not be judged, and {second name: first name} of shared layers."""
    layers: list[StoredLayer] = []
    blind: list[Blind] = []
    shared: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    whole, parts = _candidates(tensors)
    for stored in whole:
        reason = _unreadable(stored)
        # Their names may belong to a class of somebody's own.
        if other := stored.kind.lookalike(stored) or (not reason and stored.kind.wrong_shape(stored)):
            missing = "pass --model pkg.mod:factory to judge what it really is"
            blind.append(Blind.other_attention(stored.name, f"a layer like {stored.kind.kind}", f"{other}; {missing}"))
            continue
        if reason:
            blind.append(Blind(stored.name, "score", reason))
            continue
        key = tuple(identity(tensor) for tensor in stored.tensors.values())
        if key in first:
            shared[stored.name] = first[key]
        else:
            first[key] = stored.name
            layers.append(stored)
    told = {*first.values(), *shared, *(b.layer for b in blind)}
    blind += [
        Blind.other_attention(part.name, f"a layer like {part.kind.kind}", f"lacks {lost}; save the whole state_dict")
        for part, lost in parts
        if part.name not in told
    ]
    return layers, blind + _other_attention(tensors, {*first.values(), *shared, *(p.name for p, _ in parts)}), shared


def _candidates(tensors: Mapping[str, Tensor]) -> tuple[list[StoredLayer], list[tuple[StoredLayer, str]]]:
    """Layers that have the essential tensors of a kind, in order of appearance, with the keys that stand beside them; and those that lack one, which is named."""
    found: dict[tuple[Layer, str], dict[str, Tensor]] = {}
    beside: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        beside.setdefault(layer, []).append(last)
        for kind in LAYERS:
            if match := kind.signature.fullmatch(name):
                found.setdefault((kind, match["layer"] or ""), {})[match["own"]] = tensor
    layers = [
        StoredLayer(kind, name, own, tuple(last for last in beside.get(name, ()) if last not in own))
        for (kind, name), own in found.items()
    ]
    names = [frozenset(layer.tensors) for layer in layers]
    whole = [layer for layer, own in zip(layers, names, strict=True) if layer.kind.complete(own)]
    parts = [(layer, lost) for layer, own in zip(layers, names, strict=True) if (lost := layer.kind.lacks(own))]
    return whole, parts


def _unreadable(stored: StoredLayer) -> str:
    """Why these tensors cannot be judged; ``""`` when they can."""
    reasons = ((name, unreadable(tensor)) for name, tensor in stored.tensors.items())
    return next((f"{name} is {why}; save the weights as floating-point numbers" for name, why in reasons if why), "")


def _other_attention(tensors: Mapping[str, Tensor], known: Container[str]) -> list[Blind]:
    """Attention layers of other kinds, which are counted but not judged."""
    found: dict[str, str] = {}
    for name in tensors:
        for ending, kind in _OTHER_KINDS:
            if name.endswith("." + ending) or name == ending:
                found.setdefault(name[: -len(ending)].rstrip("."), kind)
    found = {layer: kind for layer, kind in found.items() if layer not in known}
    return [Blind.other_attention(layer, kind, f"looks like {kind}, {_UNSHOWN}") for layer, kind in found.items()]


_UNSHOWN = "whose scores the weights alone do not show; pass --model pkg.mod:factory --batch FILE to see them"
_QUERY = re.compile(r"(?<![a-z])(?:w?qs?|quer(?:y|ies))(?![a-z])", re.IGNORECASE)
_KEYS = {"q": "k", "qs": "ks", "wq": "wk", "wqs": "wks", "query": "key", "queries": "keys"}
_PACKED = re.compile(r"(?<![a-z])w?qkv(?![a-z])|(?<![a-z])att(?:n|ention)?(?![a-z])", re.IGNORECASE)


def own_attention(tensors: Mapping[str, Tensor]) -> list[Blind]:
    """What looks like attention that somebody wrote: a query beside a key, both at once, or a weight called attention.

    Names alone are a hint: for a file in which no layer was recognised.
    """
    names = {name.removesuffix(".weight"): name for name, tensor in tensors.items() if tensor.dim() > 1}
    known, found = {name.lower() for name in names}, dict[str, str]()
    for name in names:
        layer, dot, own = name.rpartition(".")
        key = _QUERY.sub(lambda match: _KEYS[match[0].lower()], own)
        if _PACKED.search(own) or (key != own and f"{layer}{dot}{key}".lower() in known):
            found.setdefault(layer, own)
    return [
        Blind.other_attention(layer, "a class of its own", f"{own} looks like attention {_UNSHOWN}")
        for layer, own in found.items()
    ]
