"""Xavier initialisation with gain 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.depth_init import init_lines, initialise
from gnnstab.fixes.model_structure import edited_copy
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class UnitGainInit(Fix):
    """Xavier uniform with gain 1 and zero biases on the attention layers.

    Takes the growth out of a stack that explodes, and the bias away that keeps units dead.
    """

    name: ClassVar[str] = "unit-gain-init"
    title: ClassVar[str] = "Xavier initialisation with gain 1"
    causes: ClassVar[tuple[str, ...]] = ("unsuitable-init", "dead-units", "uninitialized-parameter")
    signal: ClassVar[str] = GRADIENT_RATIO
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "none; training starts anew"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The initialisation routine."""
        return init_lines("1.0", layers)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Draw the attention layers' matrices anew."""
        with edited_copy(model, options.get("seed", 0)) as copy:
            initialise(copy, 1.0)
            return copy
