"""What the kinds of torch_geometric share: class and configuration read off the module, edges as forward was given them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.layers.base import UNSCALABLE, Layer
from gnnstab.layers.edges import edge_ends, fewest, with_loops
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


GAT_DEFAULTS: Mapping[str, Any] = {"heads": 1, "concat": True, "negative_slope": 0.2, "dropout": 0.0}
"""Arguments that the constructors of GAT and of the kinds after it have first."""


@dataclass(frozen=True, slots=True)
class Factor:
    """A parameter that the scores are proportional to, together with the other factors of its kind."""

    name: str
    """Attribute of the layer, dots allowed."""

    axis: int
    """Along which the heads lie, each as a block of equal length."""

    each: bool = False
    """True for a dictionary with one such parameter per relation or meta-path."""


class PygLayer(Layer):
    """A kind of torch_geometric, judged in a model; one that a file is recovered to says more."""

    given: ClassVar[tuple[str, ...]] = ("x", "edge_index")
    """Names of the arguments of forward, in order, as far as edges are read from them."""

    factors: ClassVar[tuple[Factor, ...]] = ()
    """The scores are scaled by them; a kind without any has no weights that scale its scores alone."""

    edits: ClassVar[frozenset[str]] = frozenset({"reinitialise"})

    def pyg(self) -> Any:
        """PyG's class."""
        return getattr(importlib.import_module(self.module), self.kind)

    def own_forward(self, module: nn.Module) -> bool:
        """True for PyG's class and a subclass that keeps its forward."""
        own = self.pyg()
        return isinstance(module, own) and type(module).forward is own.forward

    def own_code(self, module: nn.Module) -> bool:
        """True when forward, message and where softmax is called are PyG's own."""
        kind, own, parts = type(module), self.pyg(), ("message", *self.softmax_in)
        return self.own_forward(module) and all(getattr(kind, n, None) is getattr(own, n, None) for n in parts)

    def repeats(self, function: Any) -> bool:
        """True for PyG's own method, where a compiled graph shows the scores in it."""
        repeatable = type(self).traced_scores is not Layer.traced_scores
        return repeatable and function is getattr(self.pyg(), self.softmax_in[0], None)

    # A layer in memory

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the attributes show it."""
        conv: Any = module
        values = {key: value for key in self.defaults if plain(value := getattr(conv, key, None))}
        aggregation, dropout = getattr(conv, "aggr", None), values.get("dropout")
        concat, edge_dim = values.get("concat"), values.get("edge_dim")
        return LayerFacts(
            name=name,
            kind=type(conv).__name__,
            position=position,
            attention=True,
            in_channels=self.in_channels(conv),
            out_channels=self.head_channels(conv),
            heads=self.heads(conv),
            concat=concat if isinstance(concat, bool) else None,
            dropout=float(dropout) if isinstance(dropout, (int, float)) else None,
            edge_dim=edge_dim if isinstance(edge_dim, int) else 0,
            bias=getattr(conv, "bias", None) is not None if "bias" in self.defaults else None,
            aggregation=aggregation if isinstance(aggregation, str) else None,
            options={**{key: values.get(key) for key in self.options}, **self.more(conv)},
        )

    @property
    def options(self) -> list[str]:
        """Arguments of the constructor that only this kind has."""
        return [name for name in self.defaults if name not in _FACTS]

    def in_channels(self, conv: Any) -> tuple[int, int] | None:
        """Width of source and target nodes; None where it is not one number each."""
        return both(getattr(conv, "in_channels", None))

    def head_channels(self, conv: Any) -> int | None:
        """Width per head."""
        width = getattr(conv, "out_channels", None)
        return width if isinstance(width, int) else None

    def heads(self, conv: Any) -> int | None:
        """Scores per edge."""
        heads = getattr(conv, "heads", 1)
        return heads if isinstance(heads, int) else None

    def more(self, conv: Any) -> dict[str, Any]:
        """Further options, which are no plain attributes or no arguments with a default."""
        return {}

    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The edges as they were handed over, after the layer has put self-loops of its own in the place of those among them."""
        conv: Any = module
        flow = getattr(conv, "flow", "source_to_target")
        edge_index, edge_attr = (self.argument(name, args, kwargs) for name in ("edge_index", "edge_attr"))
        if "add_self_loops" in self.defaults:
            # A copy of the class that lacks the switch tells by the number of edges of its softmax.
            grown = target is not None and target.numel() != edge_ends(edge_index, flow)[1].numel()
            if getattr(conv, "add_self_loops", grown):
                size = self.argument("size", args, kwargs)
                sized = isinstance(size, (tuple, list))
                nodes = min(size) if sized else fewest(self.argument("x", args, kwargs))
                edge_index, edge_attr = with_loops(edge_index, nodes, edge_attr, getattr(conv, "fill_value", None))
        source, index, values = edge_ends(edge_index, flow)
        features = values if edge_attr is None else edge_attr.detach()
        if features is not None and features.dim() == 1:
            features = features.view(-1, 1)
        return source, index if target is None else target, features

    def argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What forward was given under this name; None where it was not."""
        place = self.given.index(name) if name in self.given else len(args)
        return args[place] if place < len(args) else kwargs.get(name)

    def joined(self, module: nn.Module, messages: Tensor, target: Tensor, nodes: int) -> Tensor | None:
        """The sum over the edges of every target, heads joined or averaged; None where that, or the sum, is not known."""
        conv: Any = module
        if getattr(conv, "aggr", None) not in ("add", "sum") or messages.dim() not in (2, 3):
            return None
        split = messages.dim() == 3 and messages.size(1) > 1 and "concat" in self.defaults
        concat = getattr(conv, "concat", None) if split else True
        if len(messages) != len(target) or not isinstance(concat, bool):
            return None
        summed = messages.new_zeros(nodes, *messages.shape[1:]).index_add_(0, target, messages.detach())
        return summed.flatten(1) if concat else summed.mean(dim=1)

    # A layer in print, and what can be changed about it

    def applies(self, edit: str) -> bool:
        """What `factors` allow besides."""
        return (edit == "scale_scores" and bool(self.factors)) or super().applies(edit)

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """The parameters that the scores are proportional to."""
        self._able("scale_scores", UNSCALABLE)
        found = {}
        for factor in self.factors:
            for name, tensor in tensors.items():
                if name == factor.name or (factor.each and name.startswith(f"{factor.name}.")):
                    found[name] = tensor.detach() * along(tensor.detach(), factor.axis, factors)
        return found

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """One line per parameter and head below 1."""
        self._able("scale_scores", UNSCALABLE)
        chosen = [f for f in self.factors if facts is None or self.present(f.name, facts)]
        if factors is None:
            return []
        low = [(head, factor) for head, factor in enumerate(factors) if factor < 1.0]
        block = self.columns(facts, len(factors)) // max(len(factors), 1)
        places = {h: str(h) if block == 1 else f"{h * block}:{(h + 1) * block}" for h, _ in low}
        return [_line(owner, f, places[head], f"{factor:.4g}") for head, factor in low for f in chosen]

    def columns(self, facts: LayerFacts | None, heads: int) -> int:
        """Length of the axis along which the heads lie, each as a block of equal length; ``heads`` scores per edge."""
        return heads


def along(tensor: Tensor, axis: int, factors: Sequence[float]) -> Tensor:
    """The factors of the heads, repeated for the block of each, in a shape that multiplies ``tensor`` along ``axis``."""
    block = tensor.shape[axis] // len(factors)
    shape = [1] * tensor.dim()
    shape[axis] = -1
    return tensor.new_tensor(factors).repeat_interleave(block).view(shape)


def both(width: Any) -> tuple[int, int] | None:
    """A width of source and target nodes, given as one number or as two; None for anything else."""
    pair = (width, width) if isinstance(width, int) else width
    known = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(one, int) for one in pair)
    return (pair[0], pair[1]) if known else None


def first(module: Any, names: Sequence[str]) -> Any:
    """What the module has under the first of these names; None where it has none of them."""
    return next((found for name in names if (found := getattr(module, name, None)) is not None), None)


def plain(value: Any) -> bool:
    """True for a value that a report can show."""
    return value is None or isinstance(value, (bool, int, float, str))


def _line(owner: str, factor: Factor, head: str, value: str) -> str:
    place = f"[{head}]" if factor.axis == 0 else f"[{':, ' * factor.axis}{head}]"
    if factor.each:
        return f"for p in {owner}.{factor.name}.values(): p.data{place} *= {value}"
    return f"{owner}.{factor.name}.data{place} *= {value}"


_FACTS = ("heads", "concat", "dropout", "edge_dim", "bias")
