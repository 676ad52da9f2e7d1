"""What GATConv and GATv2Conv share: scores by a vector and a LeakyReLU, self-loops of their own, a residual on request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.layers.base import Call, Gain, StoredLayer
from gnnstab.layers.maps import gain_of, project
from gnnstab.layers.pyg_layer import PygLayer, both, first
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


class AdditiveLayer(PygLayer):
    """A kind whose scores are made in ``edge_update``, proportional to all of its `vectors` (1, H, C); the first is always there."""

    edges_in_messages = False
    attributes = ("heads", "out_channels", "edge_update")
    softmax_in = ("edge_update",)
    given = ("x", "edge_index", "edge_attr", "size")
    source_maps: ClassVar[tuple[str, ...]]
    """Names that the map of source nodes may have."""

    target_maps: ClassVar[tuple[str, ...]]
    """Names that the map of target nodes may have."""

    # A layer in memory

    def in_channels(self, conv: Any) -> tuple[int, int] | None:
        """Those of the maps, as a lazy layer learns them."""
        known = both(
            [getattr(first(conv, names), "in_channels", None) for names in (self.source_maps, self.target_maps)]
        )
        return known if known and min(known) >= 0 else None

    def joined(self, module: nn.Module, messages: Tensor, target: Tensor, nodes: int) -> Tensor | None:
        """None: what is watched is not where the messages are made; they follow from the output."""
        return None

    def skip(self, module: nn.Module, x_target: Tensor) -> Tensor | None:
        """The residual's map."""
        return project(getattr(module, "res", None), x_target) if self.has_skip(module) else None

    def has_skip(self, module: nn.Module) -> bool | None:
        """``residual``."""
        return getattr(module, "res", None) is not None

    def message(self, module: nn.Module, call: Call, skip: Tensor | None) -> Tensor | None:
        """Output without residual and bias, which the layer adds."""
        if not self.own_code(module) or (skip is None and self.has_skip(module)):
            return None
        output = call.output.detach().float() if call.output.dtype.itemsize < 4 else call.output.detach()
        bias: Any = getattr(module, "bias", None)
        output = output if bias is None else output - bias.detach().to(output.dtype)
        return output if skip is None else output - skip

    def _heads(self, module: Any, mapped: Tensor | None) -> Tensor | None:
        return None if mapped is None else mapped.view(-1, int(module.heads), int(module.out_channels))

    def _edges(self, module: Any, edge_attr: Tensor) -> Tensor:
        """The edge features through the layer's own map, as ``edge_update`` does it."""
        features = edge_attr.view(-1, 1) if edge_attr.dim() == 1 else edge_attr
        mapped: Tensor = module.lin_edge(features).view(-1, module.heads, module.out_channels)
        return mapped

    def _edge_term(self, module: Any, call: Call) -> Tensor | None:
        return None if call.edge_attr is None else self._heads(module, project(module.lin_edge, call.edge_attr))

    # A layer in a file

    def lookalike(self, stored: StoredLayer) -> str:
        """The names are this kind's alone."""
        return ""

    def wrong_shape(self, stored: StoredLayer) -> str:
        """The vectors are (1, H, C), every map of nodes or edges has H·C rows."""
        unlike = f"not the shapes of a {self.kind}"
        first = stored.tensors[self.vectors[0]]
        if first.dim() != 3 or first.shape[0] != 1 or first.numel() == 0:
            return f"{self.vectors[0]} is {tuple(first.shape)}, expected (1, heads, channels): {unlike}"
        rows = int(first.shape[1] * first.shape[2])
        for name, tensor in stored.tensors.items():
            shape = tuple(tensor.shape)
            if name in self.vectors and shape != tuple(first.shape):
                return f"{name} is {shape}, expected {tuple(first.shape)}: {unlike}"
            if name.endswith(".weight") and not name.startswith("res.") and (len(shape) != 2 or shape[0] != rows):
                return f"{name} is {shape}, expected {rows} rows: {unlike}"
        if self._outer(stored) not in (rows, first.shape[2]):
            return f"the output has {self._outer(stored)} channels, expected {rows} or {first.shape[2]}: {unlike}"
        return ""

    def _outer(self, stored: StoredLayer) -> int:
        """Width of the output; H·C where neither bias nor residual shows it."""
        shown = [stored.tensors[name].shape[0] for name in ("bias", "res.weight") if name in stored.tensors]
        return int(shown[0]) if shown else int(stored.tensors[self.vectors[0]].numel())

    def widths(self, stored: StoredLayer) -> tuple[int, int]:
        """Of the vectors and of the bias or residual."""
        return int(stored.tensors[self.vectors[0]].numel()), self._outer(stored)

    def shown_heads(self, stored: StoredLayer) -> int | None:
        """The vectors keep the heads apart."""
        return int(stored.tensors[self.vectors[0]].shape[1])

    def _weight(self, stored: StoredLayer, names: Sequence[str]) -> Tensor:
        return next(stored.tensors[f"{name}.weight"] for name in names if f"{name}.weight" in stored.tensors)

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """Widths, bias, residual; the rest only where the module is known."""
        edge = stored.tensors.get("lin_edge.weight")
        source, target = self._weight(stored, self.source_maps), self._weight(stored, self.target_maps)
        return {
            "in_channels": (int(source.shape[1]), int(target.shape[1])),
            "dropout": known.get("dropout"),
            "edge_dim": 0 if edge is None else int(edge.shape[1]),
            "bias": "bias" in stored.tensors,
            "aggregation": known.get("aggregation"),
            "options": {**{name: known.get(name) for name in self.options}, "residual": "res.weight" in stored.tensors},
        }

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """The maps of source and target nodes."""
        return [self._weight(stored, self.source_maps), self._weight(stored, self.target_maps)]

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """Of the source map, whose heads are averaged where the output's are, and of the residual."""
        res = stored.tensors.get("res.weight")
        skip = 0.0 if res is None else float(res.detach().double().norm()) / math.sqrt(res.shape[1])
        return Gain(gain_of(self._weight(stored, self.source_maps), facts), skip, False)

    def empty(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """One map for all nodes or two, as in the file."""
        known = {name: value for name, value in self.arguments(facts).items() if value is not None}
        widths: Any = facts.in_channels
        if f"{self.source_maps[0]}.weight" in stored.tensors and widths[0] == widths[1]:
            widths = widths[0]
        layer: nn.Module = self.pyg()(widths, facts.out_channels, **{**known, "edge_dim": facts.edge_dim or None})
        return layer

    def present(self, parameter: str, facts: LayerFacts) -> bool:
        """Edge terms only with edge features."""
        return "edge" not in parameter or bool(facts.edge_dim)
