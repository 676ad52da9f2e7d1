"""LayerNorm before every layer and an identity path of weight 1 around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.identity import add_identity
from gnnstab.fixes.model_structure import edited_copy
from gnnstab.fixes.residual import residual_lines
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class PreNormResidual(Fix):
    """x ← x + act(conv(norm(x))): gradients pass at any depth, for any gain of the weights.

    Options: ``weight`` (1.0).
    """

    name: ClassVar[str] = "pre-norm-residual"
    title: ClassVar[str] = "pre-norm with a residual of weight 1"
    causes: ClassVar[tuple[str, ...]] = (
        "no-residual",
        "oversmoothing",
        "unsuitable-init",
        "normalization-misuse",
        "saturated-gate",
        "indistinguishable-nodes",
    )
    signal: ClassVar[str] = GRADIENT_RATIO
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "one LayerNorm and one addition per layer"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The norms of the constructor and the lines of forward."""
        attention = [layer for layer in layers if layer.attention]
        widths = {layer.in_channels[1] for layer in attention if layer.in_channels}
        width = str(widths.pop()) if len(widths) == 1 else "width"
        head = f"self.norms = nn.ModuleList([nn.LayerNorm({width}) for _ in range({len(attention)})])  # in __init__"
        return f"{head}\n{residual_lines(layers, float(options.get('weight', 1.0)), norm=True)}"

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Give every attention layer a ``pre_norm`` and lay the identity path around it."""
        with edited_copy(model) as copy:
            add_identity(copy, float(options.get("weight", 1.0)), norms=True)
            return copy
