"""RGATConv: a map per relation, scores LeakyReLU(W x_i·q + W x_j·k + e), or their product; softmax over or within relations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.layers.pyg_layer import Factor, PygLayer, along
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor

_DEGREE = ("l1", "b1", "l2", "b2")
_PRODUCT = "multiplicative-self-attention"


class RGATConvLayer(PygLayer):
    """`torch_geometric.nn.RGATConv` and its subclasses."""

    kind = "RGATConv"
    attributes = ("heads", "out_channels", "num_relations", "message")
    roles = {
        "score": ("q", "k", "e"),
        "value": ("weight", "basis"),
        "edge": ("lin_edge",),
    }
    edges_in_messages = False
    vectors = ("q", "k", "e", "weight", "basis")
    factors = (Factor("q", 1), Factor("k", 1), Factor("e", 1))
    given = ("x", "edge_index", "edge_type", "edge_attr")
    static = "none: every relation has a map of its own"
    defaults = {
        "num_bases": None,
        "num_blocks": None,
        "mod": None,
        "attention_mechanism": "across-relation",
        "attention_mode": "additive-self-attention",
        "heads": 1,
        "dim": 1,
        "concat": True,
        "negative_slope": 0.2,
        "dropout": 0.0,
        "edge_dim": 0,
        "bias": True,
    }

    def heads(self, conv: Any) -> int | None:
        """Scores per edge: ``dim`` for every head."""
        return int(conv.heads)

    def more(self, conv: Any) -> dict[str, Any]:
        """The number of relations."""
        return {"num_relations": conv.num_relations}

    def idle(self, facts: LayerFacts) -> tuple[str, ...]:
        """What the modifiers of the attention by the in-degree would use."""
        used = {"additive": ("w",), "scaled": _DEGREE}.get(facts.get("mod") or "", ())
        return tuple(name for name in ("w", *_DEGREE) if name not in used)

    def positional(self, facts: LayerFacts) -> list[str]:
        """Widths and number of relations."""
        return [*super().positional(facts), str(facts.get("num_relations") or "...")]

    def scale_scores(self, module: Any, factors: Sequence[float]) -> None:
        """Scale all terms of a sum; of a product one factor is enough."""
        for name in ("q",) if module.attention_mode == _PRODUCT else ("q", "k", "e"):
            tensor = getattr(module, name, None)
            if tensor is not None and len(factors):
                tensor.mul_(along(tensor, 1, factors))

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """Refused: the tensors do not tell whether the terms are added or multiplied."""
        raise self._inapplicable("no weights that scale its scores alone in a file: attention_mode is not in it")

    def present(self, parameter: str, facts: LayerFacts) -> bool:
        """Edge terms only with edge features; of a product the first factor alone."""
        if facts.get("attention_mode") == _PRODUCT:
            return parameter == "q"
        return parameter != "e" or bool(facts.edge_dim)

    def columns(self, facts: LayerFacts | None, heads: int) -> int:
        """``dim`` columns, each with a score of its own, for every head."""
        return heads if facts is None or facts.heads is None else facts.heads * int(facts.get("dim") or 1)
