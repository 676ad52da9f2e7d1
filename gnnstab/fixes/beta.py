"""The gate between a layer's linear skip and its message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.places import add_part, edited_copy, transformer_layers
from gnnstab.fixes.printing import constructor_calls
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class Beta(Fix):
    """Blends skip and message by a learned gate, about one half of each at first.

    It halves both branches: a damper for an exploding stack, and worse for a vanishing one.
    """

    name: ClassVar[str] = "beta"
    title: ClassVar[str] = "beta gate between skip and message"
    causes: ClassVar[tuple[str, ...]] = ("beta-disabled",)
    signal: ClassVar[str] = GRADIENT_RATIO
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    phase: ClassVar[int | None] = 1
    cost: ClassVar[str] = "3·width more parameters per layer; gradients shrink about twofold per layer"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor with ``beta=True``."""
        return constructor_calls([layer for layer in layers if layer.attention], beta=True)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Give every TransformerConv with a skip a gate of its own.

        Raises `FixError` when no layer has ``root_weight=True`` and no gate yet.
        """
        from torch_geometric.nn.dense.linear import Linear

        with edited_copy(model, options.get("seed", 0)) as copy:
            layers = [m for _, m in transformer_layers(copy) if m.root_weight and not m.beta]
            if not layers:
                raise FixError("no TransformerConv with root_weight=True and beta=False; the gate needs the skip")
            for layer in layers:
                width = layer.out_channels * (layer.heads if layer.concat else 1)
                add_part(layer, "lin_beta", Linear(3 * width, 1, bias=False))
                layer.beta = True
            return copy
