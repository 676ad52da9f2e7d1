"""Clamping the layers' outputs: a stop-gap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import attention_layers, edited_copy
from gnnstab.fixes.printing import activated, attribute_names, layer_call
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OUTPUT_MAX_ABS

if TYPE_CHECKING:
    from torch import nn


class ActivationClamp(Fix):
    """Limits every output entry to ±``limit``; what is clipped has no gradient.

    Right as a stop-gap, while a run must not die, and on outputs that are unbounded by nature, such as action means.
    To be removed once the cause is fixed: more than one entry in ten clipped means that layers no longer learn.
    Options: ``limit`` (10.0).
    """

    name: ClassVar[str] = "activation-clamp"
    title: ClassVar[str] = "clamp on the layers' outputs (stop-gap)"
    causes: ClassVar[tuple[str, ...]] = ()
    signal: ClassVar[str] = OUTPUT_MAX_ABS
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "no gradient through clipped entries; hides the cause"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The lines of forward, with when to take them out again."""
        limit = _limit(options)
        attention = [layer for layer in layers if layer.attention]
        written = attribute_names(attention)
        lines = [
            f"x = {activated(layer, layer_call(layer, written[layer.name]) + f'.clamp(-{limit:g}, {limit:g})')}"
            for layer in attention
        ]
        return "\n".join(
            ["# stop-gap: remove it once the cause is fixed, or when more than 10 % of the entries clip", *lines]
        )

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Clamp what every attention layer returns."""
        from gnnstab.nn.output_hooks import ClampOutput

        limit = _limit(options)
        with edited_copy(model) as copy:
            for _, layer in attention_layers(copy):
                layer.register_forward_hook(ClampOutput(limit))
            return copy


def _limit(options: dict[str, Any]) -> float:
    limit = float(options.get("limit", 10.0))
    if not limit > 0:
        raise FixError(f"limit={limit} must be positive")
    return limit
