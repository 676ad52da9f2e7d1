"""nn.MultiheadAttention: q·k/√d over the rows of a dense matrix, its maps packed in one weight or, by `kdim`, apart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.layers.base import Gain, StoredLayer
from gnnstab.layers.generic import MULTIHEAD, GenericLayer
from gnnstab.layers.maps import product_norms, row_lines, scale_rows
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The maps where keys or values have a width of their own."""


class MultiheadAttentionLayer(GenericLayer):
    """`torch.nn.MultiheadAttention` and its subclasses, in `GPSConv`, in an encoder, or anywhere."""

    kind = "MultiheadAttention"
    module = "torch.nn"
    fused = True
    rowwise = False
    multiplies = True
    roles = {
        "score": ("in_proj_weight", "q_proj_weight", "k_proj_weight"),
        "value": ("v_proj_weight", "out_proj"),
    }
    vectors = ("in_proj_weight", *_APART)
    edits = frozenset({"scale_scores", "reinitialise"})
    signature = re.compile(
        r"(?:(?P<layer>.*?)\.)?(?P<own>in_proj_(?:weight|bias)|[qkv]_proj_weight|bias_[kv]|out_proj\.(?:weight|bias))"
    )
    essential = frozenset({"out_proj.weight"})
    absent = "no in_proj_weight and out_proj side by side"
    width_names = ("in_proj_weight", "out_proj")
    probed = False
    static = "‖W_qᵀW_k‖/√d"
    defaults = {"dropout": 0.0, "bias": True, "kdim": None, "vdim": None}

    def __init__(self) -> None:
        super().__init__(MULTIHEAD)

    def matches(self, module: nn.Module) -> bool:
        """True for torch's class and subclasses."""
        from torch import nn

        return isinstance(module, nn.MultiheadAttention)

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the attributes show it; heads are always joined."""
        layer: Any = module
        found = super().facts(name, module, position)
        apart = {} if layer._qkv_same_embed_dim else {"kdim": layer.kdim, "vdim": layer.vdim}
        return replace(
            found,
            in_channels=(layer.kdim, layer.embed_dim),
            concat=True,
            edge_dim=0,
            bias=layer.in_proj_bias is not None,
            options={**found.options, **apart},
        )

    # A layer in a file

    def complete(self, names: frozenset[str]) -> bool:
        """The map out beside those in, packed or apart."""
        return "out_proj.weight" in names and ("in_proj_weight" in names or set(_APART) <= names)

    def lacks(self, names: frozenset[str]) -> str:
        """The map out beside one in, or one map in beside the others."""
        apart = [name for name in _APART if name not in names]
        if "out_proj.weight" not in names:
            return "out_proj.weight" if "in_proj_weight" in names or not apart else ""
        if len(apart) == 1:
            return apart[0]
        return (
            "in_proj_weight"
            if len(apart) == 3 and {"in_proj_bias", "in_proj_weight"} & names == {"in_proj_bias"}
            else ""
        )

    def lookalike(self, stored: StoredLayer) -> str:
        """Attention of other libraries has further tensors of its own (a scale of the logits or the heads)."""
        if stored.beside:
            return f"has {stored.beside[0]} beside in_proj and out_proj: not torch's MultiheadAttention"
        if ("in_proj_bias" in stored.tensors) != ("out_proj.bias" in stored.tensors):
            return "has a bias on one side alone: not torch's MultiheadAttention"
        if "bias_k" in stored.tensors:
            return "adds a learned key to every set (add_bias_kv), so that its weights do not show its scores"
        return ""

    def wrong_shape(self, stored: StoredLayer) -> str:
        """The map out is square, those in have as many rows, the packed one three times as many."""
        width = int(stored.tensors["out_proj.weight"].shape[0])
        expected: dict[str, tuple[int | None, ...]] = {
            "out_proj.weight": (width, width),
            "out_proj.bias": (width,),
            "in_proj_weight": (3 * width, width),
            "in_proj_bias": (3 * width,),
            "q_proj_weight": (width, width),
            "k_proj_weight": (width, None),
            "v_proj_weight": (width, None),
        }
        for name, tensor in stored.tensors.items():
            shape, right = tuple(tensor.shape), expected[name]
            if (
                not tensor.numel()
                or len(shape) != len(right)
                or any(r not in (None, s) for s, r in zip(shape, right, strict=True))
            ):
                return f"{name} is {shape}, expected {right}: not the shapes of a MultiheadAttention".replace(
                    "None", "any"
                )
        return ""

    def widths(self, stored: StoredLayer) -> tuple[int, int]:
        """All heads together, twice: they are always joined."""
        width = int(stored.tensors["out_proj.weight"].shape[0])
        return width, width

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """Widths and bias; the rest only where the module is known."""
        (query, key, value), apart = _maps(stored.tensors), "in_proj_weight" not in stored.tensors
        width = int(query.shape[0])
        return {
            "in_channels": (int(key.shape[1]), width),
            "dropout": known.get("dropout"),
            "edge_dim": 0,
            "bias": "in_proj_bias" in stored.tensors,
            "aggregation": None,
            "options": {
                "family": MULTIHEAD,
                **({"kdim": int(key.shape[1]), "vdim": int(value.shape[1])} if apart else {}),
            },
        }

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """The maps as torch draws them: the packed one whole."""
        names = ("in_proj_weight", *_APART, "out_proj.weight")
        return [stored.tensors[name] for name in names if name in stored.tensors]

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """Norms of the bilinear form behind the scores."""
        query, key, _ = _maps(stored.tensors)
        bias = stored.tensors.get("in_proj_bias")
        query_bias, key_bias = (None, None) if bias is None else bias.chunk(3)[:2]
        return product_norms(query, key, query_bias, key_bias, None, heads)

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """Of the values and the map out, one after the other."""
        value, out = _maps(stored.tensors)[2].detach().double(), stored.tensors["out_proj.weight"].detach().double()
        return Gain(float((out @ value).norm()) / math.sqrt(value.shape[1]), 0.0, False)

    def empty(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """Torch's layer, which takes its first argument for the batch."""
        from torch import nn

        return nn.MultiheadAttention(
            self.widths(stored)[0],
            facts.heads or 1,
            dropout=facts.dropout or 0.0,
            bias=bool(facts.bias),
            kdim=facts.get("kdim"),
            vdim=facts.get("vdim"),
            batch_first=True,
        )

    # A layer in print, and what can be changed about it

    def positional(self, facts: LayerFacts) -> list[str]:
        """Width and heads."""
        width = None if facts.in_channels is None else facts.in_channels[1]
        return ["..." if one is None else str(one) for one in (width, facts.heads)]

    def present(self, parameter: str, facts: LayerFacts) -> bool:
        """Packed maps are one weight, others three."""
        return parameter == "out_proj" or (parameter == "in_proj_weight") == (facts.get("kdim") is None)

    def scaled(self, tensors: Mapping[str, Tensor], factors: Sequence[float]) -> dict[str, Tensor]:
        """The tensors that hold the query's map."""
        changed = {name: tensors[name].detach().clone() for name in _QUERY if tensors.get(name) is not None}
        for name, tensor in changed.items():
            scale_rows(
                tensor if name == "q_proj_weight" else tensor[: len(tensor) // 3], factors, f"the query in {name}"
            )
        return changed

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """One line per head below 1 and tensor that holds its query."""
        apart = facts is not None and facts.get("kdim") is not None
        names = ["q_proj_weight" if apart else "in_proj_weight"]
        names += [] if facts is not None and facts.bias is False else ["in_proj_bias"]
        return row_lines(owner, names, ("num_heads", "head_dim"), facts, factors)

    def reinitialise(self, module: nn.Module, parts: Sequence[str]) -> int:
        """As torch draws them; of a packed weight the rows of queries and keys alone."""
        import torch
        from torch import nn

        found = [(name, part) for name in parts if (part := getattr(module, name, None)) is not None]
        for name, part in found:
            if not isinstance(part, torch.Tensor):
                part.reset_parameters()
                continue
            rows = score_rows(module, name, len(part)) or slice(None)
            with torch.no_grad():
                part[rows] = nn.init.xavier_uniform_(torch.empty_like(part))[rows]
        return len(found)

    def redraw(self, module: Any) -> None:
        """Torch keeps the method to itself."""
        module.out_proj.reset_parameters()
        module._reset_parameters()

    def reinit_line(self, owner: str, part: str) -> str:
        """The same for one part."""
        if part == "in_proj_weight":
            return f"torch.nn.init.xavier_uniform_({owner}.{part}.data[:2 * {owner}.embed_dim])"
        return (
            f"torch.nn.init.xavier_uniform_({owner}.{part})"
            if part in self.vectors
            else super().reinit_line(owner, part)
        )


def score_rows(module: nn.Module, parameter: str, rows: int) -> slice | None:
    """Rows of a weight of torch's own attention that make queries or keys, out of as many; None where it makes neither.

    Nobody calls a softmax there that could be watched, so that these weights are all that shows the scores.
    """
    from torch import nn

    if not isinstance(module, nn.MultiheadAttention) or parameter not in MultiheadAttentionLayer.roles["score"]:
        return None
    return slice(rows * 2 // 3 if parameter == "in_proj_weight" else rows)


_QUERY = ("in_proj_weight", "in_proj_bias", "q_proj_weight")
"""What holds the query's map."""


def _maps(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(E, E) of the query, (E, D) of keys and of values."""
    if "in_proj_weight" in tensors:
        query, key, value = tensors["in_proj_weight"].chunk(3)
    else:
        query, key, value = (tensors[name] for name in _APART)
    return query, key, value
