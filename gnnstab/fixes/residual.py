"""An identity path around every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.identity import add_identity
from gnnstab.fixes.model_structure import edited_copy
from gnnstab.fixes.printing import ACT, activated, attribute_names, layer_call
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRADIENT_RATIO

if TYPE_CHECKING:
    from torch import nn


class Residual(Fix):
    """x ← act(conv(x)) + weight·x. The weight decides: 0.1 changes nothing measurable, 1.0 carries the gradient.

    On weights with a gain of √2 or more even 1.0 explodes; see ``residual-depth-init`` and ``pre-norm-residual``.
    Options: ``weight`` (0.1, as in the document that the project grew from).
    """

    name: ClassVar[str] = "residual"
    title: ClassVar[str] = "weighted residual connection"
    causes: ClassVar[tuple[str, ...]] = ("no-residual",)
    signal: ClassVar[str] = GRADIENT_RATIO
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "one addition per layer"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The lines of forward."""
        return residual_lines(layers, float(options.get("weight", 0.1)))

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Lay the identity path around the attention layers; see `gnnstab.nn.IdentityPath` for what it can reach."""
        with edited_copy(model) as copy:
            add_identity(copy, float(options.get("weight", 0.1)))
            return copy


def residual_lines(layers: Sequence[LayerFacts], weight: float, *, norm: bool = False) -> str:
    """``x = act(conv(x)) + weight * x`` for every attention layer whose width stays the same; a list of layers as one loop."""
    attention = [layer for layer in layers if layer.attention]
    written, term = attribute_names(layers), "x" if weight == 1.0 else f"{weight} * x"

    def line(layer: LayerFacts, called: str, normed: str) -> str:
        new = activated(layer, layer_call(layer, called, normed if norm else "x"))
        return f"x = {term} + {new}" if _same_width(layer) else f"x = {new}  # other width: no identity here"

    whole = {written[layer.name].rpartition("[")[0] for layer in attention}
    in_loop = {line(layer, "conv", "norm(x)") for layer in attention}
    if len(attention) > 1 and len(whole) == len(in_loop) == 1 and "" not in whole:
        convs = whole.pop()
        over = f"conv, norm in zip({convs}, self.norms)" if norm else f"conv in {convs}"
        lines = [f"for {over}:", f"    {in_loop.pop()}"]
    else:
        lines = [line(layer, written[layer.name], f"self.norms[{number}](x)") for number, layer in enumerate(attention)]
    code = "\n".join(lines) or f"x = {term} + act(conv({'norm(x)' if norm else 'x'}, edge_index))"
    return f"{ACT}\n{code}" if " act(" in code else code


def _same_width(layer: LayerFacts) -> bool:
    return layer.in_channels is None or layer.width is None or layer.in_channels[1] == layer.width
