"""Which modules of a model are recorded, and by which adapter."""

from __future__ import annotations

import torch
from torch import nn

from gnnstab.probe.layers import ADAPTERS
from gnnstab.probe.state import State
from gnnstab.probe.watch import Watch


def find_watches(model: nn.Module, state: State) -> list[Watch]:
    """A watch for every message-passing layer, each module once; layers that cannot be hooked are named as blind."""
    watches: list[Watch] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if module.original_name.startswith(("TransformerConv", "MessagePassing")):
                state.unseen(
                    name, "output", "a scripted layer runs no Python hooks; monitor the model before scripting it"
                )
            continue
        adapter = adapter_of(module)
        if adapter is not None:
            # A model that is one bare layer has no path; its class name stands for it.
            watches.append(adapter(state, name or type(module).__name__, module))
    return watches


def adapter_of(module: nn.Module) -> type[Watch] | None:
    """The adapter of a layer that can be recorded, or None for every other module."""
    return next((adapter for kind, adapter in ADAPTERS if isinstance(module, kind)), None)
