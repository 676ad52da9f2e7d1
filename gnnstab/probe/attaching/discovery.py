"""Which modules of a model are recorded, and by which adapter."""

from __future__ import annotations

import torch
from torch import nn
from torch_geometric.nn import MessagePassing

from gnnstab.layers import LAYERS, layer_of
from gnnstab.probe.attaching._softmax_calls import LINEAR, edge_places, may_attend
from gnnstab.probe.layers import (
    AttentionRecorder,
    DenseSoftmaxRecorder,
    EdgeSoftmaxRecorder,
    MultiheadRecorder,
    OtherLayerRecorder,
)
from gnnstab.probe.layers.layer_recorder import LayerRecorder
from gnnstab.probe.state import State

_SCRIPTED = ("MessagePassing", *(layer.kind for layer in LAYERS))


def find_layers(model: nn.Module, state: State) -> list[LayerRecorder]:
    """A watch for every message-passing layer, each module once; layers that cannot be hooked are named as blind."""
    layers: list[LayerRecorder] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if module.original_name.startswith(_SCRIPTED):
                state.unseen(
                    name, "output", "a scripted layer runs no Python hooks; monitor the model before scripting it"
                )
            continue
        # A model that is one bare layer has no path; its class name stands for it.
        kind, path = layer_of(module), name or type(module).__name__
        if kind is not None:
            layers.append((MultiheadRecorder if kind.fused else AttentionRecorder)(state, path, module, kind))
        elif places := edge_places(module):
            layers.append(EdgeSoftmaxRecorder(state, path, module, places))
        elif isinstance(module, MessagePassing):
            other = OtherLayerRecorder(state, path, module)
            if may_attend(module, linear=False):
                layers.append(DenseSoftmaxRecorder(state, path, module, other))
            layers.append(other)
        elif type(module).__name__ in LINEAR:
            state.linear_attention(path, type(module).__name__)
        elif may_attend(module):
            layers.append(DenseSoftmaxRecorder(state, path, module))
    return layers


def recordable(module: nn.Module) -> bool:
    """True for a layer that `find_layers` has a watch for."""
    return layer_of(module) is not None or isinstance(module, MessagePassing)
