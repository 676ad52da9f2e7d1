"""Fixes that exchange a layer for its class in `gnnstab.nn`, whose scores stay in bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import POSITIVE, Fix, attention_in, positive
from gnnstab.fixes.model_structure import editable_layers
from gnnstab.fixes.printing import constructor_calls
from gnnstab.layers import layer_named
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY, PRECISION_FP16_HEADROOM

if TYPE_CHECKING:
    from torch import nn


class _Exchange(Fix):
    """Parameters, hooks and key names of the layers stay; the new class takes ``arguments`` besides."""

    edit = "stable"
    arguments: ClassVar[Mapping[str, Any]] = {}

    def _arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the new class that the options ask for."""
        return dict(self.arguments)

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        attention = attention_in(layers)
        able = [layer for layer in attention if layer_named(layer).stable]
        if attention and not able:
            kinds = " and ".join(dict.fromkeys(layer.kind for layer in attention))
            return f"# gnnstab.nn has no counterpart of {kinds} with bounded scores"
        name = layer_named(able[0] if able else "").stable
        return f"from gnnstab.nn import {name}\n{constructor_calls(able, name, **self._arguments(options))}"

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        from gnnstab import nn as stable

        arguments = self._arguments(options)
        for _, layer, kind in editable_layers(copy, "stable", options.get("only")):
            getattr(stable, kind.stable).convert_(layer, **arguments)


class ScoreCap(_Exchange):
    """Limits the scores of every target to ±τ around their mean, τ = 3·√(2 ln d) with its in-degree d.

    Caps of 50 or 100, as large language models use them, do nothing on graphs: with ten neighbours attention is one-hot
    long before. Options: ``cap`` (3.0, in units of √(2 ln d)), ``by_degree`` (True; False: ``cap`` in logits),
    ``shape`` (``soft``, or ``hard`` for clipping), ``only`` (names of layers; all).
    """

    name = "score-cap"
    title = "degree-aware cap on the attention scores"
    options = ("cap", "by_degree", "shape", "only")
    limits: ClassVar = {"cap": POSITIVE}
    causes = ("attention-explosion",)
    signal = ATTENTION_ENTROPY
    keeps_function = True
    cost = "one mean per target and a tanh per score; sharp attention becomes impossible"

    def _arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {"score_cap": positive(options, "cap", 3.0)}
        if not options.get("by_degree", True):
            arguments["cap_by_degree"] = False
        if options.get("shape", "soft") != "soft":
            arguments["cap_shape"] = options["shape"]
        return arguments


class QKNorm(_Exchange):
    """Bounds the scores by construction: |s| ≤ √C at the start, whatever feeds the layer (ViT-22B).

    Options: ``only`` (names of layers; all).
    """

    name = "qk-norm"
    title = "LayerNorm on queries and keys"
    options = ("only",)
    causes = ("attention-explosion", "precision")
    signal = ATTENTION_ENTROPY
    needs_fresh_weights = True
    cost = "two LayerNorms over (edges, heads, channels); trained attention has to be learnt anew"
    arguments: ClassVar[Mapping[str, Any]] = {"qk_norm": True}


class Fp32Attention(_Exchange):
    """Computes q·k and the softmax with autocast off. In fp16 the product passes 65 504 while all weights are finite.

    Options: ``only`` (names of layers; all).
    """

    name = "fp32-attention"
    title = "attention scores in float32"
    options = ("only",)
    causes = ("precision",)
    signal = PRECISION_FP16_HEADROOM
    keeps_function = True
    cost = "queries and keys of every edge in float32: about twice the attention's memory"
    arguments: ClassVar[Mapping[str, Any]] = {"fp32_attention": True}
