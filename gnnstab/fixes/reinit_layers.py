"""Broken layers drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import attention_layers, edited_copy
from gnnstab.fixes.printing import attribute_names
from gnnstab.layers import layer_of
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import CHANNELS_DEAD_SHARE, WEIGHT_NON_FINITE, WEIGHT_RMS

if TYPE_CHECKING:
    from torch import nn


class ReinitLayers(Fix):
    """Initialises the layers anew that are dead or hold broken weights, and leaves the others as they are.

    Dead means that GS701's share of channels is zero or below on every node; broken, that a weight is not finite or beyond
    GS605's limit. Options: ``only`` (names of layers; those that the signals show, else all), ``signals``, ``seed``.
    """

    name: ClassVar[str] = "reinit-layers"
    title: ClassVar[str] = "dead or broken layers drawn anew"
    causes: ClassVar[tuple[str, ...]] = ("dead-units", "uninitialized-parameter")
    signal: ClassVar[str] = CHANNELS_DEAD_SHARE
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "none; what these layers had learned is lost"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The calls to make once."""
        written = attribute_names([layer for layer in layers if layer.attention])
        names = options.get("only") or [name for name in broken_layers(signals) if name in written] or list(written)
        return "\n".join(f"{written.get(name, name)}.reset_parameters()" for name in names) or "conv.reset_parameters()"

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Call the layers' ``reset_parameters``."""
        with edited_copy(model, int(options.get("seed", 0))) as copy:
            here = {name for name, _ in attention_layers(copy)}
            shown = [name for name in broken_layers(options.get("signals")) if name in here]
            for _, layer in attention_layers(copy, options.get("only") or shown or None):
                if (kind := layer_of(layer)) is not None:
                    kind.redraw(layer)
            return copy


def broken_layers(signals: Signals | None) -> list[str]:
    """Names of the layers that the signals show to be dead or to hold broken weights, in the order of the signals."""
    from gnnstab.rules.gs605_absurd_weight import AbsurdWeight
    from gnnstab.rules.gs701_dead_units import DeadUnits

    if signals is None:
        return []
    limits = {
        CHANNELS_DEAD_SHARE: DeadUnits().share,
        WEIGHT_NON_FINITE: 0.0,
        WEIGHT_RMS: AbsurdWeight().rms,
    }
    return list(
        dict.fromkeys(
            s.layer for name, limit in limits.items() for s in signals.find(name) if s.layer and s.value > limit
        )
    )
