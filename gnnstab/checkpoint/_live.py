"""A module in memory, read like a checkpoint, so that weights are judged in one place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._optimizer import OptimizerState, read_optimizer
from gnnstab.checkpoint._pickle_stubs import known_facts
from gnnstab.checkpoint._recovery import recover
from gnnstab.checkpoint.facts import CheckpointFacts
from gnnstab.errors import UsageError
from gnnstab.layers.lazy import unwritten
from gnnstab.randomness import deep_copy
from gnnstab.sharding import WHY, waits_for_others


def recover_model(
    model: nn.Module, *, optimizer: torch.optim.Optimizer | None = None, activation: str | None = None
) -> CheckpointFacts:
    """What a module's weights and its optimizer's state tell, as `recover` tells it of a file.

    The module decides heads, concat and dropout; nothing has to be assumed about them. No tensor is changed;
    those on a device are read from copies on the host, as a file's are.

    Raises:
        UsageError: Other processes hold a part of the model.
    """
    if waits_for_others(model):
        raise UsageError(
            f"{type(model).__name__}: {WHY}; wrap the run in gnnstab.Monitor, or diagnose a file of its full state dict"
        )
    known = known_facts(model)
    # A model that is one bare layer is named as the probe names it.
    prefix = f"{type(model).__name__}." if "" in known else ""
    entries, lazy = _read_apart(model).state_dict(keep_vars=True).items(), unwritten(model)
    tensors = {prefix + name: tensor.detach().cpu() for name, tensor in entries if name not in lazy}
    states = () if optimizer is None else (_named_state(model, optimizer, prefix),)
    checkpoint = Checkpoint(
        path=type(model).__name__,
        format="module",
        size=0,
        tensors=tensors,
        networks={"": tuple(tensors)},
        known={name or type(model).__name__: facts for name, facts in known.items()},
        optimizers=states,
    )
    return recover(checkpoint, activation=activation)


def _read_apart(model: nn.Module) -> nn.Module:
    """A model of the same tensors to read: what computes a weight anew, as in a parametrised layer of torch_geometric, counts on a copy.

    torch's ``spectral_norm`` moves its buffers at each reading of the weight in training mode.
    """
    if not any("parametrizations" in module._modules for module in model.modules()):
        return model
    kept: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}

    def shell(module: nn.Module) -> nn.Module:
        twin = object.__new__(type(module))
        vars(twin).update(vars(module))
        twin._modules = {
            name: child if child is None else deep_copy(child, kept) if name == "parametrizations" else shell(child)
            for name, child in module._modules.items()
        }
        return twin

    return shell(model)


def informed(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """The checkpoint with what the model that it belongs to says of its layers, where they have the same names."""
    return replace(checkpoint, known={**known_facts(model), **checkpoint.known})


def _named_state(model: nn.Module, optimizer: torch.optim.Optimizer, prefix: str) -> OptimizerState:
    names = {id(parameter): prefix + name for name, parameter in model.named_parameters()}
    state: dict[str, Any] = optimizer.state_dict()
    state["state"] = {
        key: {name: value.cpu() if isinstance(value, Tensor) else value for name, value in entry.items()}
        for key, entry in state["state"].items()
    }
    for group, live in zip(state["param_groups"], optimizer.param_groups, strict=True):
        group["param_names"] = [names.get(id(parameter)) for parameter in live["params"]]
    return read_optimizer("the optimizer", state)
