"""Xavier initialisation scaled to the depth, reaching PyG's own Linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import attention_layers, edited_copy
from gnnstab.layers import LAYERS
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class DepthInit(Fix):
    """Xavier uniform with gain 1/√(1 + L) on every matrix of the attention layers, zero biases.

    Without an identity path it makes a deep stack vanish: use ``residual-depth-init`` there. The usual
    ``isinstance(m, nn.Linear)`` reaches none of these matrices; PyG's Linear is another class.
    Options: ``gain`` (1/√(1 + L)).
    """

    name: ClassVar[str] = "depth-init"
    title: ClassVar[str] = "depth-scaled Xavier initialisation"
    causes: ClassVar[tuple[str, ...]] = ("unsuitable-init",)
    signal: ClassVar[str] = GRADIENT_RATIO
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "none; training starts anew"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The initialisation routine."""
        depth = sum(1 for layer in layers if layer.attention)
        gain = options.get("gain")
        return init_lines(f"{gain:g}" if gain is not None else f"(1 + {depth}) ** -0.5", layers)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Draw the attention layers' matrices anew."""
        with edited_copy(model, options.get("seed", 0)) as copy:
            initialise(copy, options.get("gain"))
            return copy


def initialise(model: nn.Module, gain: float | None = None) -> None:
    """Xavier uniform in place on all attention layers' matrices, biases to zero; gain 1/√(1 + L) when None."""
    from torch.nn import init

    layers = attention_layers(model)
    gain = 1.0 / math.sqrt(1 + len(layers)) if gain is None else gain
    for _, layer in layers:
        for name, parameter in layer.named_parameters():
            if "norm" in name:
                continue
            if parameter.dim() >= 2:
                init.xavier_uniform_(parameter, gain=gain)
            else:
                init.zeros_(parameter)


def init_lines(gain: str, layers: Sequence[LayerFacts]) -> str:
    """The routine to paste, with the gain as code."""
    kinds = list(dict.fromkeys(layer.kind for layer in layers if layer.attention)) or [LAYERS[0].kind]
    classes = kinds[0] if len(kinds) == 1 else f"({', '.join(kinds)})"
    return (
        "from torch_geometric.nn.dense.linear import Linear\n"
        "for module in self.modules():\n"
        f"    if isinstance(module, {classes}):\n"
        "        for linear in module.modules():\n"
        "            if isinstance(linear, (nn.Linear, Linear)):  # PyG's Linear is no nn.Linear\n"
        f"                nn.init.xavier_uniform_(linear.weight, gain={gain})\n"
        "                if linear.bias is not None:\n"
        "                    nn.init.zeros_(linear.bias)"
    )
