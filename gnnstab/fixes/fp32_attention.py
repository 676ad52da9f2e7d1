"""Attention scores in float32 under mixed precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.stable_conv import exchange_lines, exchanged
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import PRECISION_FP16_HEADROOM

if TYPE_CHECKING:
    from torch import nn


class Fp32Attention(Fix):
    """Computes q·k and the softmax with autocast off. In fp16 the product passes 65 504 while all weights are finite.

    Options: ``only`` (names of layers; all).
    """

    name: ClassVar[str] = "fp32-attention"
    title: ClassVar[str] = "attention scores in float32"
    causes: ClassVar[tuple[str, ...]] = ("precision",)
    signal: ClassVar[str] = PRECISION_FP16_HEADROOM
    edit: ClassVar[str] = "stable"
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "queries and keys of every edge in float32: about twice the attention's memory"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The layer of `gnnstab.nn` with ``fp32_attention=True``."""
        return exchange_lines(layers, fp32_attention=True)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the layers."""
        return exchanged(model, options.get("only"), fp32_attention=True)
