"""Dropout on the attention weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import editable_layers, edited_copy
from gnnstab.fixes.printing import constructor_calls
from gnnstab.layers import layer_named
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import LOSS_GENERALISATION_GAP

if TYPE_CHECKING:
    from torch import nn


class Dropout(Fix):
    """Drops attention weights in training. A cure for over-fitting only: it raises the RMS of the messages.

    Options: ``p`` (0.1).
    """

    name: ClassVar[str] = "dropout"
    title: ClassVar[str] = "dropout on the attention weights"
    causes: ClassVar[tuple[str, ...]] = ("no-dropout",)
    signal: ClassVar[str] = LOSS_GENERALISATION_GAP
    keeps_function: ClassVar[bool] = True
    edit: ClassVar[str] = "dropout"
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "noise: message RMS × 1/√(1−p) in training; train and eval outputs differ"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor with ``dropout=``."""
        able = [layer for layer in layers if layer.attention and layer_named(layer).applies("dropout")]
        return constructor_calls(able, dropout=_probability(options))

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Set the probability on every attention layer."""
        p = _probability(options)
        with edited_copy(model) as copy:
            for _, layer, _ in editable_layers(copy, "dropout"):
                layer.dropout = p
            return copy


def _probability(options: dict[str, Any]) -> float:
    p = float(options.get("p", 0.1))
    if not 0.0 <= p < 1.0:
        raise FixError(f"dropout p={p} must lie in [0, 1)")
    return p
