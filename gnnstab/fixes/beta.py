"""The gate between a layer's linear skip and its message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import add_part, editable_layers, edited_copy
from gnnstab.fixes.printing import constructor_calls
from gnnstab.layers import layer_named
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
    edit: ClassVar[str] = "add_gate"
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "3·width more parameters per layer; gradients shrink about twofold per layer"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor with ``beta=True``."""
        attention = [layer for layer in layers if layer.attention]
        able = [layer for layer in attention if layer_named(layer).applies("add_gate")]
        if attention and not able:
            return f"# {attention[0].kind} has no gate between skip and message"
        return constructor_calls(able, beta=True)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Give every layer with a skip a gate of its own.

        Raises `FixError` when no layer has ``root_weight=True`` and no gate yet.
        """
        with edited_copy(model, options.get("seed", 0)) as copy:
            able = editable_layers(copy, "add_gate")
            layers = [(m, kind) for _, m, kind in able if kind.has_skip(m) and kind.gate(m) is None]
            if not layers:
                raise FixError(f"no {able[0][2].kind} with root_weight=True and beta=False; the gate needs the skip")
            for layer, kind in layers:
                add_part(layer, kind.roles["gate"][0], kind.add_gate(layer))
            return copy
