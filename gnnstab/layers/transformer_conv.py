"""TransformerConv: scores q·(k + e)/√C, values v + e, a linear skip, and a gate β between message and skip."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.layers.base import Call, Gain, StoredLayer
from gnnstab.layers.maps import gain_of, in_blocks, product_norms, project, row_lines, scale_rows
from gnnstab.layers.pyg_layer import PygLayer
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAPS = ("lin_key", "lin_query", "lin_value", "lin_edge", "lin_skip", "lin_beta")


def dot_scores(query: Tensor, key: Tensor) -> Tensor:
    """(E, H) scores from queries and keys (E, H, C), edge terms added to the keys, by the arithmetic of PyG's ``message``."""
    score: Tensor = (query * key).sum(dim=-1) / math.sqrt(query.shape[-1])
    return score


class TransformerConvLayer(PygLayer):
    """`torch_geometric.nn.TransformerConv` and its subclasses."""

    kind = "TransformerConv"
    multiplies = True
    roles = {
        "score": ("lin_query", "lin_key"),
        "value": ("lin_value",),
        "edge": ("lin_edge",),
        "skip": ("lin_skip",),
        "gate": ("lin_beta",),
    }
    stages = {
        "lin_query": "query",
        "lin_key": "key",
        "lin_value": "value",
        "lin_edge": "edge",
        "aggr_module": "aggregate",
        "lin_skip": "skip",
        "lin_beta": "gate",
    }
    signature = re.compile(rf"(?:(?P<layer>.*)\.)?(?P<own>(?:{'|'.join(_MAPS)})\.(?:weight|bias))")
    essential = frozenset({"lin_key.weight", "lin_query.weight", "lin_value.weight"})
    absent = "no lin_key, lin_query, lin_value and lin_skip side by side"
    width_names = ("lin_key", "lin_skip")
    given = ("x", "edge_index", "edge_attr")
    static = "‖W_qᵀW_k‖/√C"
    defaults = {
        "heads": 1,
        "concat": True,
        "beta": False,
        "dropout": 0.0,
        "edge_dim": 0,
        "bias": True,
        "root_weight": True,
    }
    stable = "StableTransformerConv"
    edits = frozenset({"scale_scores", "add_gate", "switch_skip_on", "reinitialise"})

    # A layer in memory

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the attributes show it; what a copy of the class lacks is not known."""
        conv: Any = module
        found, query = super().facts(name, module, position), getattr(conv, "lin_query", None)
        root, beta = found.get("root_weight"), getattr(conv, "lin_beta", None) is not None
        # A gate that root_weight=False switches off leaves no trace of having been asked for.
        options = {"beta": beta, "beta_requested": True if beta else (False if root else None), "root_weight": root}
        return replace(found, bias=None if query is None else getattr(query, "bias", None) is not None, options=options)

    def in_channels(self, conv: Any) -> tuple[int, int] | None:
        """Input widths; a lazy layer declares -1 and knows better after its first call."""
        declared = super().in_channels(conv)
        if declared is None:
            return None
        actual = [getattr(getattr(conv, part, None), "in_channels", -1) for part in ("lin_key", "lin_query")]
        source, target = (a if d < 0 else d for d, a in zip(declared, actual, strict=True))
        return source, target

    def gate(self, module: nn.Module) -> nn.Module | None:
        """The map of β."""
        from torch import nn

        gate = getattr(module, "lin_beta", None)
        return gate if isinstance(gate, nn.Module) else None

    def scores(self, module: nn.Module, call: Call, x_source: Tensor, x_target: Tensor) -> Tensor | None:
        """q·(k + e)/√C on the edges of a call."""
        conv: Any = module
        maybe_query, maybe_key = project(conv.lin_query, x_target), project(conv.lin_key, x_source)
        if maybe_query is None or maybe_key is None:
            return None
        query, key, heads = maybe_query, maybe_key, int(conv.heads)
        edge_map = getattr(conv, "lin_edge", None)

        def part(edges: slice) -> Tensor | None:
            keys = key.index_select(0, call.index_source[edges])
            if edge_map is not None:
                edge = None if call.edge_attr is None else project(edge_map, call.edge_attr[edges])
                if edge is None:
                    return None
                keys.add_(edge)
            queries = query.index_select(0, call.index_target[edges])
            channels = query.shape[1] // heads
            return dot_scores(queries.view(-1, heads, channels), keys.view(-1, heads, channels))

        return in_blocks(call.index_target.numel(), query.shape[1], part)

    def traced_scores(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """From what ``message`` received; ``forward`` takes the attention out of ``_alpha`` only later."""
        return message_scores(module, **kwargs), module._alpha

    def operands(self, module: nn.Module, given: Mapping[str, Any], made: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Query, key and edge term, each (E, H, C)."""
        conv: Any = module
        pair = (given["query_i"], given["key_j"])
        return pair if "edge" not in made else (*pair, made["edge"].view(-1, conv.heads, conv.out_channels))

    def skip(self, module: nn.Module, x_target: Tensor) -> Tensor | None:
        """The linear skip (N_t, H·C or C)."""
        return project(getattr(module, "lin_skip", None), x_target) if self.has_skip(module) else None

    def message(self, module: nn.Module, call: Call, skip: Tensor | None) -> Tensor | None:
        """Output minus skip, where the layer adds the two; behind a gate they cannot be told apart."""
        if not self.own_code(module) or call.gate is not None or self.gate(module) is not None:
            return None
        if not self.has_skip(module):
            return call.output
        return None if skip is None else call.output.detach().to(skip.dtype) - skip

    def product(self, module: nn.Module) -> float | None:
        """q·k is √C times the score."""
        conv: Any = module
        return math.sqrt(conv.out_channels) if self.own_code(module) else None

    # A layer in a file

    def lookalike(self, stored: StoredLayer) -> str:
        """ResGatedGraphConv and own attention have maps of the same names."""
        if "lin_skip.weight" not in stored.tensors:
            return "has lin_key, lin_query and lin_value but no lin_skip: not PyG's TransformerConv"
        if "bias" in stored.beside or ("lin_key.bias" in stored.tensors) != ("lin_skip.bias" in stored.tensors):
            return "its biases are those of ResGatedGraphConv, not of TransformerConv"
        return ""

    def wrong_shape(self, stored: StoredLayer) -> str:
        """Every map has H·C rows, but for the skip and the gate."""
        weights = {n.removesuffix(".weight"): t for n, t in stored.tensors.items() if n.endswith(".weight")}
        biases = {n.removesuffix(".bias"): t for n, t in stored.tensors.items() if n.endswith(".bias")}
        for name, tensor in weights.items():
            if tensor.dim() != 2 or tensor.numel() == 0:
                return f"{name}.weight is {tuple(tensor.shape)}: not the shapes of a TransformerConv"
        (rows, source), target = weights["lin_key"].shape, weights["lin_query"].shape[1]
        skip = weights["lin_skip"].shape[0]
        expected = {"lin_key": (rows, source), "lin_query": (rows, target), "lin_value": (rows, source)}
        expected["lin_skip"] = (skip, target)
        if "lin_edge" in weights:
            expected["lin_edge"] = (rows, weights["lin_edge"].shape[1])
        if "lin_beta" in weights:
            expected["lin_beta"] = (1, 3 * skip)
        for name, shape in expected.items():
            if tuple(weights[name].shape) != shape:
                seen = tuple(weights[name].shape)
                return f"{name}.weight is {seen}, expected {shape}: not the shapes of a TransformerConv"
        for name in ("lin_key", "lin_query", "lin_value", "lin_skip"):
            length = expected[name][0]
            if biases and (name not in biases or tuple(biases[name].shape) != (length,)):
                return f"{name}.bias is not ({length},): not the shapes of a TransformerConv"
        if rows % skip:
            return f"lin_skip gives {skip} channels, no divisor of the {rows} of lin_key: not the shapes of a TransformerConv"
        return ""

    def widths(self, stored: StoredLayer) -> tuple[int, int]:
        """Rows of the key map and of the skip."""
        return int(stored.tensors["lin_key.weight"].shape[0]), int(stored.tensors["lin_skip.weight"].shape[0])

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """Widths, gate, bias; dropout and root_weight only where the module is known."""
        tensors, beta = stored.tensors, "lin_beta.weight" in stored.tensors
        edge = tensors.get("lin_edge.weight")
        return {
            "in_channels": (int(tensors["lin_key.weight"].shape[1]), int(tensors["lin_query.weight"].shape[1])),
            "dropout": known.get("dropout"),
            "edge_dim": 0 if edge is None else int(edge.shape[1]),
            "bias": "lin_key.bias" in tensors,
            "aggregation": known.get("aggregation"),
            "options": {
                "beta": beta,
                # A gate is only built beside a root weight, so its tensor proves both; its absence proves nothing about
                # the request.
                "beta_requested": True if beta else None,
                "root_weight": True if beta else known.get("root_weight"),
            },
        }

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """Key, query, value and skip; edge and gate are narrow and tell little."""
        return [stored.tensors[f"{name}.weight"] for name in ("lin_key", "lin_query", "lin_value", "lin_skip")]

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """Norms of the bilinear form behind the scores."""
        own = stored.tensors
        return product_norms(
            own["lin_query.weight"],
            own["lin_key.weight"],
            own.get("lin_query.bias"),
            own.get("lin_key.bias"),
            own.get("lin_edge.weight"),
            heads,
        )

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """Of values and skip, which a gate weighs where there is one."""
        skip = stored.tensors["lin_skip.weight"].detach().double()
        own = 0.0 if facts.get("root_weight") is False else float(skip.norm()) / math.sqrt(skip.shape[1])
        return Gain(gain_of(stored.tensors["lin_value.weight"], facts), own, bool(facts.get("beta")))

    def empty(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """With the aggregation, too."""
        layer: nn.Module = self.pyg()(
            facts.in_channels,
            facts.out_channels,
            heads=facts.heads,
            concat=facts.concat,
            beta=bool(facts.get("beta")),
            dropout=facts.dropout or 0.0,
            edge_dim=facts.edge_dim or None,
            bias=bool(facts.bias),
            root_weight=facts.get("root_weight") is not False,
            aggr=facts.aggregation or "add",
        )
        return layer

    # A layer in print

    def arguments(self, facts: LayerFacts) -> Mapping[str, Any]:
        """What is known of them, the gate as it was asked for where nothing else is known."""
        known = super().arguments(facts)
        return known if known["beta"] is not None else {**known, "beta": facts.get("beta_requested")}

    # What can be changed about a layer

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """The query's weight and bias: node and edge terms change alike, and the file keeps its layout."""
        names = [name for name in ("lin_query.weight", "lin_query.bias") if name in tensors]
        changed = {name: tensors[name].detach().clone() for name in names}
        for name, tensor in changed.items():
            scale_rows(tensor, factors, name)
        return changed

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """One line per head below 1, for the weight and, where there is one, the bias."""
        names = ["lin_query.weight", *["lin_query.bias"] * (facts is None or facts.bias is not False)]
        return row_lines(owner, names, ("heads", "out_channels"), facts, factors)

    def add_gate(self, module: Any) -> nn.Module:
        """The map of β, and the flag that makes forward use it."""
        from torch_geometric.nn.dense.linear import Linear

        width = module.out_channels * (module.heads if module.concat else 1)
        module.beta = True
        gate: nn.Module = Linear(3 * width, 1, bias=False)
        return gate

    def has_skip(self, module: nn.Module) -> bool | None:
        """``root_weight``."""
        return bool(getattr(module, "root_weight", False))

    def switch_skip_on(self, module: Any) -> None:
        """PyG builds the map in any case."""
        module.root_weight = True


def message_scores(
    conv: Any, *, query_i: Tensor, key_j: Tensor, edge_attr: Tensor | None = None, **rest: Any
) -> Tensor:
    """(E, H) scores from what ``message`` receives, operation by operation as there."""
    edge = edge_term(conv, edge_attr)
    return dot_scores(query_i, key_j if edge is None else key_j + edge)


def edge_term(conv: Any, edge_attr: Tensor | None) -> Tensor | None:
    """(E, H, C): what every edge adds to key and value; None for a layer without edge features."""
    if conv.lin_edge is None:
        return None
    assert edge_attr is not None
    term: Tensor = conv.lin_edge(edge_attr).view(-1, conv.heads, conv.out_channels)
    return term
