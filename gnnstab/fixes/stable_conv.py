"""What the fixes that exchange a layer for its class in `gnnstab.nn`, with scores in bounds, share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.fixes.model_structure import editable_layers, edited_copy
from gnnstab.fixes.printing import constructor_calls
from gnnstab.layers import layer_named
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


def exchanged(model: nn.Module, layers: Sequence[str] | None, **options: Any) -> nn.Module:
    """A copy whose layers carry the options; parameters, hooks and key names stay."""
    from gnnstab import nn as stable

    with edited_copy(model) as copy:
        for _, layer, kind in editable_layers(copy, "stable", layers):
            getattr(stable, kind.stable).convert_(layer, **options)
        return copy


def exchange_lines(layers: Sequence[LayerFacts], **options: Any) -> str:
    """The import and the constructor calls to paste."""
    attention = [layer for layer in layers if layer.attention]
    able = [layer for layer in attention if layer_named(layer).stable]
    if attention and not able:
        kinds = " and ".join(dict.fromkeys(layer.kind for layer in attention))
        return f"# gnnstab.nn has no counterpart of {kinds} with bounded scores"
    attention, name = able, layer_named(able[0] if able else "").stable
    return f"from gnnstab.nn import {name}\n{constructor_calls(attention, name, **options)}"
