"""What the fixes that draw single weights anew share: which maps, from which seed, and the lines to print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.places import edited_copy, transformer_layers
from gnnstab.fixes.printing import attribute_names
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


def redrawn(model: nn.Module, maps: Sequence[str], options: dict[str, Any]) -> nn.Module:
    """A copy whose linear maps of these names are initialised anew, as their own ``reset_parameters`` does.

    ``options``: ``only`` (names of layers; all that have such a map) and ``seed``.

    Raises `FixError` when no layer has such a map.
    """
    with edited_copy(model, int(options.get("seed", 0))) as copy:
        found = [
            linear
            for _, layer in transformer_layers(copy, options.get("only"))
            for name in maps
            if (linear := getattr(layer, name, None)) is not None
        ]
        if not found:
            raise FixError(f"no layer of {type(model).__name__} has {' or '.join(maps)}")
        for linear in found:
            linear.reset_parameters()
        return copy


def redraw_lines(layers: Sequence[LayerFacts], maps: Sequence[str]) -> str:
    """The calls to make once, before training."""
    written = attribute_names([layer for layer in layers if layer.attention])
    owners = list(written.values()) or ["conv"]
    return "\n".join(f"{owner}.{name}.reset_parameters()" for owner in owners for name in maps)
