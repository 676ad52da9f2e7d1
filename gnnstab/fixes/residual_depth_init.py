"""A residual of weight 1 together with depth-scaled Xavier initialisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.depth_init import init_lines, initialise
from gnnstab.fixes.identity import add_identity
from gnnstab.fixes.model_structure import edited_copy
from gnnstab.fixes.residual import residual_lines
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class ResidualDepthInit(Fix):
    """x ← x + act(conv(x)) with Xavier gain 1/√(1 + L): the branches are small, the identity carries the gradient.

    Options: ``weight`` (1.0).
    """

    name: ClassVar[str] = "residual-depth-init"
    title: ClassVar[str] = "residual of weight 1 with depth-scaled initialisation"
    causes: ClassVar[tuple[str, ...]] = ("no-residual", "unsuitable-init", "oversmoothing")
    signal: ClassVar[str] = GRADIENT_RATIO
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "one addition per layer; training starts anew"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The initialisation routine and the lines of forward."""
        depth = sum(1 for layer in layers if layer.attention)
        return f"{init_lines(f'(1 + {depth}) ** -0.5', layers)}\n{residual_lines(layers, float(options.get('weight', 1.0)))}"

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Draw the attention layers' matrices anew and lay the identity path around them."""
        with edited_copy(model, options.get("seed", 0)) as copy:
            initialise(copy)
            add_identity(copy, float(options.get("weight", 1.0)))
            return copy
