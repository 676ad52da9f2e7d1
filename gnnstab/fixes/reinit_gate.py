"""The gate drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.reinitialising import reinit_lines, reinitialised
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GATE_SATURATED_SHARE

if TYPE_CHECKING:
    from torch import nn


class ReinitGate(Fix):
    """Initialises the map of the beta gate anew, so that it passes skip and message again.

    For a gate that its own weights saturate. One that a large input saturates needs a norm before the layer.
    Options: ``only`` (names of layers; all), ``seed``.
    """

    name: ClassVar[str] = "reinit-gate"
    title: ClassVar[str] = "beta gate drawn anew"
    causes: ClassVar[tuple[str, ...]] = ("saturated-gate",)
    signal: ClassVar[str] = GATE_SATURATED_SHARE
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "none; what the gate had learned is lost"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The calls to make once."""
        return reinit_lines([layer for layer in layers if layer.get("beta") is not False], "gate")

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Draw the gates anew."""
        return reinitialised(model, "gate", options)
