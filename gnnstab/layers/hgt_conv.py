"""HGTConv: scores p_rel·q·(A_rel k)/√d with a map per node type and relation, one softmax over all relations of a target."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gnnstab.layers.base import Gain, StoredLayer
from gnnstab.layers.hetero import HeteroLayer
from gnnstab.layers.maps import per_head, product_norms
from gnnstab.layers.pyg_layer import Factor
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


class HGTConvLayer(HeteroLayer):
    """`torch_geometric.nn.HGTConv` and its subclasses."""

    kind = "HGTConv"
    multiplies = True
    score_maps = 3
    weighs_scores = "p_rel"
    attributes = ("heads", "out_channels", "p_rel", "message")
    roles = {
        "score": ("k_rel", "kqv_lin", "p_rel"),
        "value": ("v_rel", "out_lin"),
        "skip": ("skip",),
        "share": ("skip",),
    }
    factors = (Factor("p_rel", 1, each=True),)
    signature = re.compile(
        r"(?:(?P<layer>.*?)\.)?(?P<own>(?:kqv|out)_lin\.lins\.[^.]+\.(?:weight|bias)|[kv]_rel\.weight|(?:skip|p_rel)\.[^.]+)"
    )
    essential = frozenset({"k_rel.weight", "v_rel.weight"})
    absent = "no k_rel, v_rel and kqv_lin side by side"
    width_names = ("k_rel", "out_lin")
    probed = False
    static = "|p|·‖W_qᵀA_relᵀW_k‖/√d, the largest of all relations"
    defaults = {"heads": 1}

    def more(self, conv: Any) -> dict[str, Any]:
        """The node types whose input is not added to the output, by a comma: widths differ, or no relation leads to them."""
        added = {kind for kind, width in conv.in_channels.items() if width in (conv.out_channels, -1)}
        return {"without_skip": ",".join(kind for kind in conv.node_types if kind not in added & conv.dst_node_types)}

    def idle(self, facts: LayerFacts) -> tuple[str, ...]:
        """The shares of those inputs."""
        return tuple(f"skip.{kind}" for kind in str(facts.get("without_skip") or "").split(",") if kind)

    # A layer in a file

    def lookalike(self, stored: StoredLayer) -> str:
        """Other layers over relations name these otherwise."""
        relations = _under(stored, "p_rel")
        if not relations or not _under(stored, "kqv_lin.lins"):
            return "has k_rel and v_rel but no p_rel and kqv_lin: not PyG's HGTConv"
        odd = [name for name in relations if len(name.split("__")) != 3]
        return f"p_rel.{odd[0]} is not source__relation__target: not PyG's HGTConv" if odd else ""

    def wrong_shape(self, stored: StoredLayer) -> str:
        """Maps per head and relation are square, maps per node type have three times the width of the output."""
        unlike = "not the shapes of an HGTConv"
        prior = next(iter(_under(stored, "p_rel").values()))
        key = stored.tensors["k_rel.weight"]
        if prior.dim() != 2 or prior.numel() == 0 or key.dim() != 3:
            return f"k_rel.weight is {tuple(key.shape)} beside priors {tuple(prior.shape)}: {unlike}"
        heads, relations, channels = int(prior.shape[1]), len(_under(stored, "p_rel")), int(key.shape[-1])
        expected: dict[str, tuple[int, ...]] = {
            f"{name}.weight": (heads * relations, channels, channels) for name in ("k_rel", "v_rel")
        }
        expected |= {f"p_rel.{name}": (1, heads) for name in _under(stored, "p_rel")}
        for name, shape in expected.items():
            if tuple(stored.tensors[name].shape) != shape:
                return f"{name} is {tuple(stored.tensors[name].shape)}, expected {shape}: {unlike}"
        for name, tensor in stored.tensors.items():
            if name.startswith("kqv_lin.") and tensor.shape[0] != 3 * heads * channels:
                return f"{name} has {tensor.shape[0]} rows, expected {3 * heads * channels}: {unlike}"
        return ""

    def widths(self, stored: StoredLayer) -> tuple[int, int]:
        """All heads together, twice: they are always joined."""
        width = int(stored.tensors["k_rel.weight"].shape[-1]) * (self.shown_heads(stored) or 1)
        return width, width

    def shown_heads(self, stored: StoredLayer) -> int | None:
        """The priors keep the heads apart."""
        return int(next(iter(_under(stored, "p_rel").values())).shape[1])

    def stored_facts(self, stored: StoredLayer, known: Mapping[str, Any]) -> dict[str, Any]:
        """The common width of all node types."""
        widths = {int(weight.shape[1]) for weight in _maps(stored).values()}
        (width,) = widths if len(widths) == 1 else (None,)
        return {
            "in_channels": None if width is None else (width, width),
            "dropout": None,
            "edge_dim": 0,
            "bias": None,
            "aggregation": "add",
            "options": {},
        }

    def drawn(self, stored: StoredLayer) -> list[Tensor]:
        """The map of every node type."""
        return list(_maps(stored).values())

    def logits(self, stored: StoredLayer, heads: int) -> dict[str, list[float]]:
        """Norms of the bilinear form of the relation in which they are largest, times its prior."""
        found = list(self._by_relation(stored, heads))
        return {name: [max(one[name][head] for one in found) for head in range(heads)] for name in found[0]}

    def _by_relation(self, stored: StoredLayer, heads: int) -> Iterator[dict[str, list[float]]]:
        weights, priors = _maps(stored), _under(stored, "p_rel")
        relation_maps = stored.tensors["k_rel.weight"].detach().double()
        relation_maps = relation_maps.view(heads, len(priors), *relation_maps.shape[1:])
        for position, (relation, prior) in enumerate(priors.items()):
            source, _, target = relation.split("__")
            if source not in weights or target not in weights:
                continue
            key, query = weights[source].detach().double().tensor_split(3)[0], weights[target].tensor_split(3)[1]
            bias = stored.tensors.get(f"kqv_lin.lins.{target}.bias")
            # A row of keys is multiplied from the right.
            mapped = relation_maps[:, position].mT @ per_head(key, None, heads)
            norms = product_norms(
                query, mapped.flatten(0, 1), None if bias is None else bias.tensor_split(3)[1], None, None, heads
            )
            size = prior.detach().double().abs().view(-1).tolist()
            yield {
                name: values if name == "logit.alignment" else [p * v for p, v in zip(size, values, strict=True)]
                for name, values in norms.items()
            }

    def gain(self, stored: StoredLayer, facts: LayerFacts) -> Gain:
        """Of the widest branch: the values' map of a node type; a learned share of the input is added where widths agree."""
        values = [weight.detach().double().tensor_split(3)[2] for weight in _maps(stored).values()]
        return Gain(max(float(v.norm()) / v.shape[1] ** 0.5 for v in values), 0.0, True)

    def empty(self, stored: StoredLayer, facts: LayerFacts) -> nn.Module:
        """Of the node types and relations that the names tell."""
        widths = {name: int(weight.shape[1]) for name, weight in _maps(stored).items()}
        relations = [tuple(name.split("__")) for name in _under(stored, "p_rel")]
        graph, heads = (list(widths), relations), self.shown_heads(stored) or 1
        layer: nn.Module = self.pyg()(widths, self.widths(stored)[0], graph, heads)
        return layer


def _under(stored: StoredLayer, prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, by the rest of their names, in the order of the file."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in stored.tensors.items() if name.startswith(f"{prefix}.")}


def _maps(stored: StoredLayer) -> dict[str, Tensor]:
    """Node type → (3·H·d, D) its keys, queries and values."""
    found = _under(stored, "kqv_lin.lins")
    return {name.removesuffix(".weight"): tensor for name, tensor in found.items() if name.endswith(".weight")}
