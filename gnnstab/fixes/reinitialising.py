"""What the fixes that draw single weights anew share: which parts, from which seed, and the lines to print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.model_structure import editable_layers, edited_copy
from gnnstab.fixes.printing import attribute_names
from gnnstab.layers import layer_named
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


def reinitialised(model: nn.Module, role: str, options: dict[str, Any]) -> nn.Module:
    """A copy whose parts with this role are initialised anew, as their own ``reset_parameters`` does.

    ``options``: ``only`` (names of layers; all that have such a part) and ``seed``.

    Raises `FixError` when no layer has such a part.
    """
    with edited_copy(model, int(options.get("seed", 0))) as copy:
        layers = editable_layers(copy, "reinitialise", options.get("only"))
        if not sum(kind.reinitialise(layer, kind.roles.get(role, ())) for _, layer, kind in layers):
            names = dict.fromkeys(name for _, _, kind in layers for name in kind.roles.get(role, ()))
            raise FixError(f"no layer of {type(model).__name__} has {' or '.join(names)}")
        return copy


def reinit_lines(layers: Sequence[LayerFacts], role: str) -> str:
    """The calls to make once, before training."""
    attention = [layer for layer in layers if layer.attention]
    owners: list[tuple[str, LayerFacts | str]] = [
        (owner, layer) for owner, layer in zip(attribute_names(attention).values(), attention, strict=True)
    ]
    return "\n".join(
        line
        for owner, layer in owners or [("conv", "")]
        for line in [
            layer_named(layer).reinit_line(owner, name)
            for name in layer_named(layer).roles.get(role, ())
            if isinstance(layer, str) or layer_named(layer).present(name, layer)
        ]
        or [f"# {owner}: initialise anew what its {role}s are made of"]
    )
