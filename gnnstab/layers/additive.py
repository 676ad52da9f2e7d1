"""What GATConv and GATv2Conv share: scores by a vector and a LeakyReLU, self-loops of their own, a residual on request."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.layers.base import Call, Gain, Layer, StoredLayer
from gnnstab.layers.edges import edge_ends, fewest, with_loops
from gnnstab.layers.maps import project
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


class AdditiveLayer(Layer):
    """A kind whose scores are made in ``edge_update``."""

    attributes: ClassVar[tuple[str, ...]] = ("heads", "out_channels", "edge_update")
    stages: ClassVar[Mapping[str, str]] = {}
    softmax_in: ClassVar[tuple[str, ...]] = ("edge_update",)
    edits: ClassVar[frozenset[str]] = frozenset({"scale_scores", "reinitialise"})
    vectors: ClassVar[tuple[str, ...]]
    """The parameters (1, H, C) that the scores are proportional to, all together; the first is always there."""

    source_maps: ClassVar[tuple[str, ...]]
    """Names that the map of source nodes may have."""

    target_maps: ClassVar[tuple[str, ...]]
    """Names that the map of target nodes may have."""

    @abstractmethod
    def pyg(self) -> Any:
        """PyG's class."""

    def own_forward(self, module: nn.Module) -> bool:
        """True for PyG's class and a subclass that keeps its forward."""
        kind, own = type(module), self.pyg()
        return isinstance(module, own) and kind.forward is own.forward

    def own_code(self, module: nn.Module) -> bool:
        """True when forward, edge_update and message are PyG's own."""
        kind: Any = type(module)
        return self.own_forward(module) and self.repeats(kind.edge_update) and kind.message is self.pyg().message

    def repeats(self, function: Any) -> bool:
        """True for PyG's own ``edge_update``."""
        return function is self.pyg().edge_update

    # A layer in memory

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the attributes show it."""
        conv: Any = module
        values = {key: getattr(conv, key, None) for key in self.defaults}
        aggregation = getattr(conv, "aggr", None)
        dropout = values["dropout"]
        return LayerFacts(
            name=name,
            kind=type(conv).__name__,
            position=position,
            attention=True,
            in_channels=self._widths(conv),
            out_channels=conv.out_channels if isinstance(conv.out_channels, int) else None,
            heads=conv.heads if isinstance(conv.heads, int) else None,
            concat=values["concat"] if isinstance(values["concat"], bool) else None,
            dropout=float(dropout) if isinstance(dropout, (int, float)) else None,
            edge_dim=values["edge_dim"] if isinstance(values["edge_dim"], int) else 0,
            bias=getattr(conv, "bias", None) is not None,
            aggregation=aggregation if isinstance(aggregation, str) else None,
            options={key: value for key, value in values.items() if key in self.own and _plain(value)},
        )

    own: ClassVar[tuple[str, ...]] = ("negative_slope", "add_self_loops", "residual")
    """Arguments of the constructor that are options of this kind."""

    def _widths(self, conv: Any) -> tuple[int, int] | None:
        maps = (self._map(conv, self.source_maps), self._map(conv, self.target_maps))
        known = [getattr(one, "in_channels", None) for one in maps]
        return (known[0], known[1]) if all(isinstance(one, int) and one >= 0 for one in known) else None  # type: ignore[return-value]

    @staticmethod
    def _map(module: Any, names: Sequence[str]) -> Any:
        return next((found for name in names if (found := getattr(module, name, None)) is not None), None)

    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The edges after the layer has put its own self-loops in the place of those that it was given."""
        conv: Any = module
        x = args[0] if args else kwargs["x"]
        edge_index = args[1] if len(args) > 1 else kwargs["edge_index"]
        edge_attr = args[2] if len(args) > 2 else kwargs.get("edge_attr")
        size = args[3] if len(args) > 3 else kwargs.get("size")
        # A copy that lacks the switch tells by the number of edges of its softmax.
        given = edge_ends(edge_index, conv.flow)[1].numel()
        if getattr(conv, "add_self_loops", target is not None and target.numel() != given):
            nodes = min(size) if isinstance(size, (tuple, list)) else fewest(x)
            edge_index, edge_attr = with_loops(edge_index, nodes, edge_attr, getattr(conv, "fill_value", None))
        source, index, values = edge_ends(edge_index, conv.flow)
        features = values if edge_attr is None else edge_attr.detach()
        if features is not None and features.dim() == 1:
            features = features.view(-1, 1)
        return source, index if target is None else target, features

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
            "options": {**{name: known.get(name) for name in self.own}, "residual": "res.weight" in stored.tensors},
        }

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """The maps of source and target nodes."""
        return [self._weight(stored, self.source_maps), self._weight(stored, self.target_maps)]

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """Of the source map, whose heads are averaged where the output's are, and of the residual."""
        value = self._weight(stored, self.source_maps).detach().double()
        if facts.concat is False and facts.heads is not None:
            value = value.view(facts.heads, -1, value.shape[1]).mean(dim=0)
        res = stored.tensors.get("res.weight")
        skip = 0.0 if res is None else float(res.detach().double().norm()) / math.sqrt(res.shape[1])
        return Gain(float(value.norm()) / math.sqrt(value.shape[1]), skip, False)

    def build(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """PyG's layer, made on the meta device, where nothing is drawn at random."""
        import torch

        known = {name: value for name, value in self.arguments(facts).items() if value is not None}
        widths: Any = facts.in_channels
        if f"{self.source_maps[0]}.weight" in stored.tensors and widths[0] == widths[1]:
            widths = widths[0]
        with torch.device("meta"):
            layer = self.pyg()(widths, facts.out_channels, **{**known, "edge_dim": facts.edge_dim or None})
        state = {name: tensor.detach().float() for name, tensor in stored.tensors.items()}
        layer.load_state_dict(state, strict=True, assign=True)
        made: nn.Module = layer.requires_grad_(False)
        return made

    # A layer in print, and what can be changed about it

    def arguments(self, facts: LayerFacts) -> Mapping[str, Any]:
        """What is known of them."""
        return {name: facts.get(name) for name in self.defaults}

    def scale_scores(self, module: Any, factors: Sequence[float]) -> None:
        """Scale the vectors of every head: LeakyReLU keeps positive factors."""
        for name in self.vectors:
            vector = getattr(module, name, None)
            if vector is not None and len(factors):
                vector.mul_(vector.new_tensor(factors).view(1, -1, 1))

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """The vectors."""
        found = {name: tensors[name].detach() for name in self.vectors if name in tensors}
        return {name: vector * vector.new_tensor(factors).view(1, -1, 1) for name, vector in found.items()}

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """One line per vector and head below 1."""
        vectors = [v for v in self.vectors if "edge" not in v or facts is None or facts.edge_dim]
        if factors is None:
            lines = [f"    {owner}.{vector}.data[:, h] *= gamma[h]" for vector in vectors]
            loop = f"for h in range({owner}.heads):  # gamma = min(1, 3 * sqrt(2 * ln(median in-degree)) / max|score of head h|)"
            return [loop, *lines]
        return [
            f"{owner}.{vector}.data[:, {head}] *= {factor:.4g}"
            for head, factor in enumerate(factors)
            if factor < 1.0
            for vector in vectors
        ]


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
