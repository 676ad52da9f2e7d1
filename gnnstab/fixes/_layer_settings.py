"""Fixes that are an argument of the layers' own constructor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix, Limits, attention_in
from gnnstab.fixes.model_structure import add_part, editable_layers
from gnnstab.fixes.printing import constructor_calls
from gnnstab.layers import layer_named
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import (
    DEGREE_ISOLATED_SHARE,
    GRADIENT_RATIO,
    LOSS_GENERALISATION_GAP,
    PLACE_CONSTANT_ROWS,
)

if TYPE_CHECKING:
    from torch import nn


class Dropout(Fix):
    """Drops attention weights in training. A cure for over-fitting only: it raises the RMS of the messages.

    Options: ``p`` (0.1).
    """

    name = "dropout"
    title = "dropout on the attention weights"
    options = ("p",)
    limits: ClassVar = {"p": Limits(0.0, 1.0, low_in=True)}
    causes = ("no-dropout",)
    signal = LOSS_GENERALISATION_GAP
    unless = "GS204"
    said = "against over-fitting only: it raises the RMS of messages"
    edit = "dropout"
    keeps_function = True
    shows_in_training = True
    cost = "noise: message RMS × 1/√(1−p) in training; train and eval outputs differ"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        able = [layer for layer in attention_in(layers) if layer_named(layer).applies("dropout")]
        return constructor_calls(able, dropout=_probability(options))

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        p = _probability(options)
        for _, layer, _ in editable_layers(copy, "dropout"):
            layer.dropout = p


def _probability(options: Mapping[str, Any]) -> float:
    p = options.get("p", 0.1)
    Dropout.limits["p"].check("dropout p", p)
    return float(p)


class Beta(Fix):
    """Blends skip and message by a learned gate, about one half of each at first.

    It halves both branches: a damper for an exploding stack, and worse for a vanishing one. The gate needs the skip, and is
    given to the layers that have one and no gate yet.
    """

    name = "beta"
    title = "beta gate between skip and message"
    causes = ("beta-disabled",)
    signal = GRADIENT_RATIO
    only_with = "GS204"
    said = "damps an exploding stack; beyond about 12 layers it overshoots into vanishing"
    edit = "add_gate"
    needs_fresh_weights = True
    cost = "3·width more parameters per layer; gradients shrink about twofold per layer"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        attention = attention_in(layers)
        able = [layer for layer in attention if layer_named(layer).applies("add_gate")]
        if attention and not able:
            return f"# {attention[0].kind} has no gate between skip and message"
        return constructor_calls(able, beta=True)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        able = editable_layers(copy, "add_gate")
        layers = [(m, kind) for _, m, kind in able if kind.has_skip(m) and kind.gate(m) is None]
        if not layers:
            raise FixError(f"no {able[0][2].kind} with root_weight=True and beta=False; the gate needs the skip")
        for layer, kind in layers:
            add_part(layer, kind.roles["gate"][0], kind.add_gate(layer))


class RootWeight(Fix):
    """``root_weight=True``: a node without incoming edges keeps its own features, and a path that trains."""

    name = "root-weight"
    title = "root_weight=True"
    causes = ("isolated-nodes", "indistinguishable-nodes")
    signal = DEGREE_ISOLATED_SHARE
    needs_fresh_weights = True
    cost = "one linear map per layer; training starts anew"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        bare = [layer for layer in attention_in(layers) if layer.get("root_weight") is False]
        if any(signal.detail.get("unshifted") for signal in signals.find(PLACE_CONSTANT_ROWS)):
            return "batch = Batch.from_data_list(graphs)  # or, where you join them: edge_index + nodes of all graphs before"
        if layers and not bare:
            return "data = AddSelfLoops()(data)  # torch_geometric.transforms; ToUndirected(), where edges lead one way by mistake"
        return constructor_calls(bare, root_weight=True)

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        bare = [(m, kind) for _, m, kind in editable_layers(copy, "switch_skip_on") if not kind.has_skip(m)]
        if not bare:
            raise FixError("every layer has its root term (root_weight=True) already")
        for layer, kind in bare:
            kind.switch_skip_on(layer)
