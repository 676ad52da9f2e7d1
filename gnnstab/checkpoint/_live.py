"""A module in memory, read like a checkpoint, so that weights are judged in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import Linear

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
    lazy = unwritten(model)
    tensors = {prefix + name: tensor.detach().cpu() for name, tensor in entries(model) if name not in lazy}
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


def entries(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of what a state dict holds of tensors, past the hooks and the extra state of the user's."""
    for path, module in _read_apart(model).named_modules(remove_duplicate=False):
        parts = {**module._parameters, **module._buffers}
        # A Linear of torch_geometric saves what its weight is by now; torch's own what it is computed from.
        computed = module._modules.get("parametrizations") if isinstance(module, Linear) else None
        for name in [*(computed or ()), *parts]:
            tensor = getattr(module, name) if name not in parts else parts[name]
            if isinstance(tensor, Tensor) and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}".lstrip("."), tensor


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
    """By hand: a ``state_dict`` of the optimizer calls hooks of the user's."""
    names = {id(parameter): prefix + name for name, parameter in model.named_parameters()}
    numbers: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers.setdefault(id(parameter), len(numbers))
    groups = [
        {
            **group,
            "params": [numbers[id(parameter)] for parameter in group["params"]],
            "param_names": [names.get(id(parameter)) for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    state = {
        numbers.get(id(key), key): {
            name: value.cpu() if isinstance(value, Tensor) else value for name, value in entry.items()
        }
        for key, entry in optimizer.state.items()
        if isinstance(entry, dict)
    }
    return read_optimizer("the optimizer", {"state": state, "param_groups": groups})
