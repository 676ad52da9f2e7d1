"""What the fixes that exchange TransformerConv for `gnnstab.nn.StableTransformerConv` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.fixes.places import edited_copy, transformer_layers
from gnnstab.fixes.printing import constructor_calls
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


def exchanged(model: nn.Module, layers: Sequence[str] | None, **options: Any) -> nn.Module:
    """A copy whose TransformerConvs carry the options; parameters, hooks and key names stay."""
    from gnnstab.nn import StableTransformerConv

    with edited_copy(model) as copy:
        for _, layer in transformer_layers(copy, layers):
            StableTransformerConv.convert_(layer, **options)
        return copy


def exchange_lines(layers: Sequence[LayerFacts], **options: Any) -> str:
    """The import and the constructor calls to paste."""
    attention = [layer for layer in layers if layer.attention]
    return f"from gnnstab.nn import StableTransformerConv\n{constructor_calls(attention, 'StableTransformerConv', **options)}"
