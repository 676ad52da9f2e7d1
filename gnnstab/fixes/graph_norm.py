"""GraphNorm after every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import add_part, editable_layers, edited_copy
from gnnstab.fixes.printing import activated, attribute_names, layer_call
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OUTPUT_RMS

if TYPE_CHECKING:
    from torch import nn


class GraphNorm(Fix):
    """Normalises every channel over each graph, after each layer, as the document that the project grew from says.

    It pins the forward RMS, and the gradient grows by a quarter per layer instead: harmless in shallow nets, and no
    cure in deep ones. Needs the batch vector; graphs of one or two nodes become constants.
    """

    name: ClassVar[str] = "graph-norm"
    title: ClassVar[str] = "GraphNorm after every layer"
    causes: ClassVar[tuple[str, ...]] = ()
    signal: ClassVar[str] = OUTPUT_RMS
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "two passes over the node states per layer; couples all nodes of a graph"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The norms of the constructor and the lines of forward."""
        attention = [layer for layer in layers if layer.attention]
        written = attribute_names(attention)
        lines = ["from torch_geometric.nn import GraphNorm"]
        lines.append(f"self.norms = nn.ModuleList([GraphNorm(width) for _ in range({len(attention)})])  # in __init__")
        for number, layer in enumerate(attention):
            call = layer_call(layer, written[layer.name])
            lines.append(f"x = {activated(layer, f'self.norms[{number}]({call}, batch)')}")
        return "\n".join(lines)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Give every attention layer a ``post_norm``; all nodes count as one graph where the model gets no batch vector."""
        from torch_geometric.nn import GraphNorm as Norm

        from gnnstab.nn.identity import Forget
        from gnnstab.nn.output_hooks import BatchVector, NormOutput

        with edited_copy(model) as copy:
            vector = BatchVector()
            for name, layer, kind in editable_layers(copy, "rowwise"):
                width = kind.facts(name, layer, 0).width
                if width is None:
                    raise FixError(f"{name} does not say how wide its output is; add the norm in forward")
                add_part(layer, "post_norm", Norm(width))
                layer.register_forward_hook(NormOutput(vector))
            copy.register_forward_pre_hook(vector, with_kwargs=True)
            copy.register_forward_hook(Forget(vector), always_call=True)
            return copy
