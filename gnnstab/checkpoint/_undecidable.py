"""What a file of tensors cannot show, and what was assumed instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnnstab.checkpoint._settings import HEADS
from gnnstab.checkpoint.facts import Undecided
from gnnstab.layers import parts
from gnnstab.records import LayerFacts

MODEL = "--model pkg.mod:factory"
BATCH = "--model pkg.mod:factory --batch FILE"


def undecided(layers: Sequence[LayerFacts], settings: Mapping[str, Any]) -> tuple[Undecided, ...]:
    """Everything about these layers that leaves no trace in a state dict, with what to pass to decide it.

    Several numbers of heads among the file's own ``settings`` are offered: each may belong to another part of the model.
    """
    if not layers:
        return ()
    said = [f"{name}={value}" for name, value in settings.items() if HEADS.search(name) and isinstance(value, int)]
    hint = f" (the file's settings say {', '.join(said[:3])})" if said else ""
    found = [
        _where("heads", layers, f"concatenated heads leave no trace in the shapes{hint}", "--heads N"),
        _where("dropout", layers, "a probability is no tensor", MODEL),
        _where("root_weight", layers, _unused_skip(layers), MODEL),
        _where("identity_path", layers, "x + conv(x) is code, not a tensor", MODEL),
        _where("norm_before", layers, "the order of layers is code; names alone do not show it", MODEL),
        _where("activation", layers, "an activation has no tensor", "--activation NAME"),
    ]
    return tuple(item for item in found if item.layers)


def _where(what: str, layers: Sequence[LayerFacts], reason: str, option: str) -> Undecided:
    return Undecided(what, reason, option, tuple(layer.name for layer in layers if _concerns(layer, what)))


def _concerns(layer: LayerFacts, what: str) -> bool:
    """Whether the layer has such a fact and it is not known; what its kind does not have leaves nothing open."""
    return layer.flat().get(what, "") is None


def _unused_skip(layers: Sequence[LayerFacts]) -> str:
    names = dict.fromkeys(parts(layer.kind, "skip") for layer in layers if "root_weight" in layer.options)
    return f"{', '.join(names)} is in the file whether or not it is used"


def assumptions(layers: Sequence[LayerFacts], sources: Sequence[str], activation: str | None) -> tuple[str, ...]:
    """One line per thing that was read, given or assumed; equal lines of several layers are joined."""
    if not layers:
        return ()
    lines = [
        f"heads={'unknown' if layer.heads is None else layer.heads}: {source}"
        for layer, source in zip(layers, sources, strict=True)
    ]
    lines += [f"activation={activation or 'relu'}: {'given' if activation else 'assumed, for the static gain'}"]
    if any(_concerns(layer, "root_weight") for layer in layers):
        lines.append("root_weight=True: assumed, for the static gain and the synthetic probe")
    if any(layer.identity_path is None for layer in layers):
        lines.append("the static gain is that of the layers alone, without an identity path around them")
    return tuple(dict.fromkeys(lines))
