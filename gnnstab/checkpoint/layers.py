"""TransformerConv layers, found by the names and shapes of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gnnstab.checkpoint.tensors import identity, unreadable
from gnnstab.records import Blind

PARTS = ("key", "query", "value", "edge", "skip", "beta")
"""The linear maps of a TransformerConv: ``lin_key``, ``lin_query``, …"""

_NAME = re.compile(r"(?:(?P<layer>.*)\.)?lin_(?P<part>key|query|value|edge|skip|beta)\.(?P<kind>weight|bias)")

_OTHER_KINDS = (
    ("att_src", "GATConv"),
    ("att", "GATv2Conv"),
    ("in_proj_weight", "MultiheadAttention"),
    ("kqv_lin.lins", "HGTConv"),
)
"""(last part of a key, attention layer that has it)"""


@dataclass(frozen=True, slots=True)
class Conv:
    """The tensors of one TransformerConv. H: heads, C: channels per head, D_s, D_t: source and target input width."""

    name: str
    """Key prefix, without the last dot."""

    weights: Mapping[str, Tensor]
    """``key`` (H·C, D_s), ``query`` (H·C, D_t), ``value`` (H·C, D_s), ``edge`` (H·C, D_e), ``skip`` (H·C or C, D_t),
    ``beta`` (1, 3·H·C or 3·C); edge and beta only where present."""

    biases: Mapping[str, Tensor]
    """``key``, ``query``, ``value`` (H·C,), ``skip`` (H·C or C,); empty for ``bias=False``."""

    @property
    def rows(self) -> int:
        """H·C."""
        return int(self.weights["key"].shape[0])

    @property
    def skip_rows(self) -> int:
        """H·C when the heads are concatenated, C when they are averaged."""
        return int(self.weights["skip"].shape[0])

    @property
    def in_channels(self) -> tuple[int, int]:
        """(D_s, D_t)."""
        return int(self.weights["key"].shape[1]), int(self.weights["query"].shape[1])

    def parameters(self) -> dict[str, Tensor]:
        """Full parameter name → tensor."""
        dot = f"{self.name}." if self.name else ""
        found = {f"{dot}lin_{part}.weight": tensor for part, tensor in self.weights.items()}
        return found | {f"{dot}lin_{part}.bias": tensor for part, tensor in self.biases.items()}


def find_convs(tensors: Mapping[str, Tensor]) -> tuple[list[Conv], list[Blind], dict[str, str]]:
    """TransformerConvs in order of appearance, what could not be judged, and {second name: first name} of shared layers."""
    convs: list[Conv] = []
    blind: list[Blind] = []
    shared: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, (weights, biases, others) in _candidates(tensors).items():
        conv = Conv(name, weights, biases)
        if reason := _objection(conv, others):
            blind.append(Blind(name, "score", reason))
            continue
        key = tuple(identity(tensor) for tensor in conv.parameters().values())
        if key in first:
            shared[name] = first[key]
        else:
            first[key] = name
            convs.append(conv)
    return convs, blind + _other_attention(tensors), shared


def _candidates(tensors: Mapping[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor], list[str]]]:
    """Layer name → (weights, biases, further keys directly in the layer), for layers with key, query and value."""
    found: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], list[str]]] = {}
    for name, tensor in tensors.items():
        if match := _NAME.fullmatch(name):
            weights, biases, _ = found.setdefault(match["layer"] or "", ({}, {}, []))
            (weights if match["kind"] == "weight" else biases)[match["part"]] = tensor
    for name in tensors:
        layer, _, last = name.rpartition(".")
        if layer in found:
            found[layer][2].append(last)
    return {name: parts for name, parts in found.items() if {"key", "query", "value"} <= parts[0].keys()}


def _objection(conv: Conv, others: list[str]) -> str:
    """Why these tensors are not a TransformerConv that can be judged; ``""`` when they are."""
    missing = "pass --model pkg.mod:factory to judge what it really is"
    if "skip" not in conv.weights:
        return f"has lin_key, lin_query and lin_value but no lin_skip: not PyG's TransformerConv; {missing}"
    for name, tensor in conv.parameters().items():
        if why := unreadable(tensor):
            return f"{name.rpartition('lin_')[1]}{name.rpartition('lin_')[2]} is {why}; save the weights as floating-point numbers"
    if "bias" in others or ("key" in conv.biases) != ("skip" in conv.biases):
        return f"its biases are those of ResGatedGraphConv, not of TransformerConv; {missing}"
    if wrong := _wrong_shape(conv):
        return f"{wrong}: not the shapes of a TransformerConv; {missing}"
    return ""


def _wrong_shape(conv: Conv) -> str:
    """The first tensor whose shape cannot belong to a TransformerConv, with its shape."""
    if any(tensor.dim() != 2 or tensor.numel() == 0 for tensor in conv.weights.values()):
        part, tensor = next((p, t) for p, t in conv.weights.items() if t.dim() != 2 or t.numel() == 0)
        return f"lin_{part}.weight is {tuple(tensor.shape)}"
    rows, skip, (source, target) = conv.rows, conv.skip_rows, conv.in_channels
    expected = {"key": (rows, source), "query": (rows, target), "value": (rows, source), "skip": (skip, target)}
    if "edge" in conv.weights:
        expected["edge"] = (rows, int(conv.weights["edge"].shape[1]))
    if "beta" in conv.weights:
        expected["beta"] = (1, 3 * skip)
    for part, shape in expected.items():
        if tuple(conv.weights[part].shape) != shape:
            return f"lin_{part}.weight is {tuple(conv.weights[part].shape)}, expected {shape}"
    for part in ("key", "query", "value", "skip"):
        length = expected[part][0]
        if conv.biases and (part not in conv.biases or tuple(conv.biases[part].shape) != (length,)):
            return f"lin_{part}.bias is not ({length},)"
    return f"lin_skip gives {skip} channels, no divisor of the {rows} of lin_key" if rows % skip else ""


def _other_attention(tensors: Mapping[str, Tensor]) -> list[Blind]:
    """Attention layers of other kinds, which are counted but not judged."""
    found: dict[str, str] = {}
    for name in tensors:
        for ending, kind in _OTHER_KINDS:
            if name.endswith("." + ending) or name == ending:
                found.setdefault(name[: -len(ending)].rstrip("."), kind)
    reason = (
        "looks like {kind}, and the attention of TransformerConv alone is judged; --model pkg.mod:factory --batch FILE shows "
        "its outputs and gradients"
    )
    return [Blind.other_attention(layer, kind, reason.format(kind=kind)) for layer, kind in found.items()]
