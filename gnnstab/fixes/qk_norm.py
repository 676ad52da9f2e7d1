"""LayerNorm on queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.stable_conv import exchange_lines, exchanged
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY

if TYPE_CHECKING:
    from torch import nn


class QKNorm(Fix):
    """Bounds the scores by construction: |s| ≤ √C at the start, whatever feeds the layer (ViT-22B).

    Options: ``only`` (names of layers; all).
    """

    name: ClassVar[str] = "qk-norm"
    title: ClassVar[str] = "LayerNorm on queries and keys"
    causes: ClassVar[tuple[str, ...]] = ("attention-explosion", "precision")
    signal: ClassVar[str] = ATTENTION_ENTROPY
    edit: ClassVar[str] = "stable"
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "two LayerNorms over (edges, heads, channels); trained attention has to be learnt anew"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The layer of `gnnstab.nn` with ``qk_norm=True``."""
        return exchange_lines(layers, qk_norm=True)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the layers."""
        return exchanged(model, options.get("only"), qk_norm=True)
