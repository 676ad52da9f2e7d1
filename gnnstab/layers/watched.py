"""What the kinds share whose attention is watched in a model: no signature in a file, scores as softmax receives them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import GnnstabError
from gnnstab.layers.base import Call, Gain, Layer, StoredLayer
from gnnstab.layers.edges import edge_ends, fewest, with_loops
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Factor:
    """A parameter that the scores are proportional to, together with the other factors of its kind."""

    name: str
    """Attribute of the layer, dots allowed."""

    axis: int
    """Along which the heads lie, each as a block of equal length."""

    each: bool = False
    """True for a dictionary with one such parameter per relation or meta-path."""


class WatchedLayer(Layer):
    """A kind that is judged in a model, and that a bare file of weights is not recovered to."""

    stages: ClassVar[Mapping[str, str]] = {}
    signature: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    essential: ClassVar[frozenset[str]] = frozenset()
    absent: ClassVar[str] = ""
    width_names: ClassVar[tuple[str, str]] = ("", "")
    given: ClassVar[tuple[str, ...]] = ("x", "edge_index")
    """Names of the arguments of forward, in order, as far as edges are read from them."""

    factors: ClassVar[tuple[Factor, ...]] = ()

    def pyg(self) -> Any:
        """PyG's class."""
        return getattr(importlib.import_module(self.module), self.kind)

    def own_forward(self, module: nn.Module) -> bool:
        """True for PyG's class and a subclass that keeps its forward."""
        own = self.pyg()
        return isinstance(module, own) and type(module).forward is own.forward

    def own_code(self, module: nn.Module) -> bool:
        """True when forward and message are PyG's own."""
        kind: Any = type(module)
        return self.own_forward(module) and getattr(kind, "message", None) is getattr(self.pyg(), "message", None)

    def repeats(self, function: Any) -> bool:
        """False: scores are read where softmax receives them, and a compiled graph shows no such place."""
        return False

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
            options={**{key: values.get(key) for key in self.defaults if key not in _FACTS}, **self.more(conv)},
        )

    def in_channels(self, conv: Any) -> tuple[int, int] | None:
        """Width of source and target nodes; None where it is not one number each."""
        width = getattr(conv, "in_channels", None)
        pair = (width, width) if isinstance(width, int) else width
        known = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(w, int) for w in pair)
        return (pair[0], pair[1]) if known else None  # type: ignore[index]

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
        """The edges as they were handed over, with the self-loops that the layer adds."""
        conv: Any = module
        edge_index = self.argument("edge_index", args, kwargs)
        if getattr(conv, "add_self_loops", False):
            edge_index = with_loops(edge_index, fewest(self.argument("x", args, kwargs)))[0]
        source, index, values = edge_ends(edge_index, getattr(conv, "flow", "source_to_target"))
        features = self.argument("edge_attr", args, kwargs)
        return source, index if target is None else target, values if features is None else features.detach()

    def argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What forward was given under this name; None where it was not."""
        place = self.given.index(name) if name in self.given else len(args)
        return args[place] if place < len(args) else kwargs.get(name)

    def joined(self, module: nn.Module, messages: Tensor, target: Tensor, nodes: int) -> Tensor | None:
        """The sum over the edges of every target; None for another aggregation."""
        conv: Any = module
        if getattr(conv, "aggr", None) not in ("add", "sum") or messages.dim() not in (2, 3):
            return None
        if len(messages) != len(target):
            return None
        summed = messages.new_zeros(nodes, *messages.shape[1:]).index_add_(0, target, messages.detach())
        return summed.mean(dim=1) if summed.dim() == 3 and not getattr(conv, "concat", True) else summed.flatten(1)

    def scores(self, module: nn.Module, call: Call, x_source: Tensor, x_target: Tensor) -> Tensor | None:
        """None: they are watched and not recomputed."""
        return None

    def skip(self, module: nn.Module, x_target: Tensor) -> Tensor | None:
        """None: a branch of its own is not told apart."""
        return None

    # A layer in a file: there is none

    def lookalike(self, stored: StoredLayer) -> str:
        """Its names tell nothing."""
        return f"the tensors of a {self.kind} do not tell it from other layers"

    def wrong_shape(self, stored: StoredLayer) -> str:
        """Nor do its shapes."""
        return self.lookalike(stored)

    def widths(self, stored: StoredLayer) -> tuple[int, int]:
        """Raise `GnnstabError`."""
        raise self._not_stored()

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """Raise `GnnstabError`."""
        raise self._not_stored()

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """Raise `GnnstabError`."""
        raise self._not_stored()

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """Raise `GnnstabError`."""
        raise self._not_stored()

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """Raise `GnnstabError`."""
        raise self._not_stored()

    def build(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """Raise `GnnstabError`."""
        raise self._not_stored()

    def _not_stored(self) -> GnnstabError:
        return GnnstabError(f"a {self.kind} is not recovered from a file; pass the model")

    # A layer in print, and what can be changed about it

    def arguments(self, facts: LayerFacts) -> Mapping[str, Any]:
        """What is known of them."""
        return {name: facts.get(name) for name in self.defaults}

    def scale_scores(self, module: Any, factors: Sequence[float]) -> None:
        """Scale the parameters that the scores are proportional to."""
        found = [(factor, tensor) for factor in self.factors for tensor in self._tensors(module, factor)]
        if not found:
            raise self._inapplicable("no weights that scale its scores alone")
        for factor, tensor in found if len(factors) else ():
            tensor.mul_(along(tensor, factor.axis, factors))

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """The same parameters."""
        self._able()
        found = {}
        for factor in self.factors:
            for name, tensor in tensors.items():
                if name == factor.name or (factor.each and name.startswith(f"{factor.name}.")):
                    found[name] = tensor.detach() * along(tensor.detach(), factor.axis, factors)
        return found

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """One line per parameter and head below 1."""
        self._able()
        chosen = [f for f in self.factors if facts is None or self.present(f.name, facts)]
        if factors is None:
            loop = f"for h in range({owner}.heads):  # gamma = min(1, 3 * sqrt(2 * ln(median in-degree)) / max|score of head h|)"
            return [loop, *(f"    {_line(owner, f, 'h', 'gamma[h]')}" for f in chosen)]
        low = [(head, factor) for head, factor in enumerate(factors) if factor < 1.0]
        block = self.block(facts)
        places = {h: str(h) if block == 1 else f"{h * block}:{(h + 1) * block}" for h, _ in low}
        return [_line(owner, f, places[head], f"{factor:.4g}") for head, factor in low for f in chosen]

    def block(self, facts: LayerFacts | None) -> int:
        """Length of a head's block in the factors."""
        return 1

    def reinitialise(self, module: nn.Module, parts: Sequence[str]) -> int:
        """Initialise the parts anew: matrices and vectors by glorot, modules as they do it themselves."""
        from torch_geometric.nn.inits import glorot, reset

        if not self.applies("reinitialise"):
            raise self._inapplicable("no part that can be initialised anew alone")
        found = {name: part for name in parts if (part := getattr(module, name, None)) is not None}
        for name, part in found.items():
            glorot(part) if name in self.vectors else reset(part)
        return len(found)

    def reinit_line(self, owner: str, part: str) -> str:
        """The same for one part."""
        return f"torch_geometric.nn.inits.{'glorot' if part in self.vectors else 'reset'}({owner}.{part})"

    def _tensors(self, module: Any, factor: Factor) -> Iterator[Tensor]:
        found = module
        for part in factor.name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            yield from found.values() if factor.each else (found,)

    def _able(self) -> None:
        if not self.applies("scale_scores"):
            raise self._inapplicable("no weights that scale its scores alone")


def along(tensor: Tensor, axis: int, factors: Sequence[float]) -> Tensor:
    """The factors of the heads, repeated for the block of each, in a shape that multiplies ``tensor`` along ``axis``."""
    block = tensor.shape[axis] // len(factors)
    shape = [1] * tensor.dim()
    shape[axis] = -1
    return tensor.new_tensor(factors).repeat_interleave(block).view(shape)


def plain(value: Any) -> bool:
    """True for a value that a report can show."""
    return value is None or isinstance(value, (bool, int, float, str))


def _line(owner: str, factor: Factor, head: str, value: str) -> str:
    place = f"[{head}]" if factor.axis == 0 else f"[{':, ' * factor.axis}{head}]"
    if factor.each:
        return f"for p in {owner}.{factor.name}.values(): p.data{place} *= {value}"
    return f"{owner}.{factor.name}.data{place} *= {value}"


_FACTS = ("heads", "concat", "dropout", "edge_dim", "bias")
