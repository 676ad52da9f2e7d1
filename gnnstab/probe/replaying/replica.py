"""A copy of a model that runs beside the user's: no hooks of theirs, no trace left on it, on the generators, on the inputs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from gnnstab.errors import UsageError
from gnnstab.randomness import deep_copy

HOOK_TABLES = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
"""Endings of the attribute names under which torch and torch_geometric keep hooks."""


class Autocast(NamedTuple):
    """The autocast state of a forward pass."""

    device_type: str
    dtype: torch.dtype
    enabled: bool = True


def rng_snapshot() -> dict[str, Any]:
    """The generator states to hand to a later replay: ``cpu`` (a tensor) and ``cuda`` (device index → tensor)."""
    cpu = torch.default_generator.get_state()
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {"cpu": cpu, "cuda": {}}
    return {"cpu": cpu, "cuda": {i: torch.cuda.get_rng_state(i) for i in _cuda_devices()}}


def _cuda_devices() -> list[int]:
    """All CUDA devices once CUDA is in use; asking must not start it."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def replica(model: nn.Module) -> nn.Module:
    """A deep copy without hooks and without ``message`` overrides on instances.

    Hooks never enter the copy, so whatever they hold on to (a logger, an open file) is not copied. Kept are the hooks
    that are part of what the model computes: those of torch's ``weight_norm``, ``spectral_norm`` and pruning, and
    those by which a fix of gnnstab changed the model, or `evaluating` has a BatchNorm go by the batch.

    Raises:
        UsageError: The model holds something that cannot be copied, or a copy would wait for other processes.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        kept = _computing_hooks(module)
        for name, value in vars(module).items():
            if name.endswith(HOOK_TABLES) and isinstance(value, dict):
                # The tables with flags (`_with_kwargs`) share the keys of the tables that hold the hooks.
                memo[id(value)] = type(value)((k, deep_copy(v, memo)) for k, v in value.items() if k in kept)
            elif name == "message":
                memo[id(value)] = None
    memo.update(without_history(model))
    try:
        twin = deep_copy(model, memo)
    except Exception as error:
        raise UsageError(f"{type(model).__name__} cannot be copied for a replay: {error}") from error
    for module in twin.modules():
        vars(module).pop("message", None)
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
    return twin


def without_history(model: nn.Module) -> dict[int, Any]:
    """The memo with which `copy.deepcopy` copies the numbers of a tensor that a module keeps from an earlier forward.

    Such a tensor still hangs in its autograd graph and refuses to be copied.
    """
    attributes = [value for module in model.modules() for value in vars(module).values()]
    return {id(t): t.detach().clone() for value in attributes for _, t in tensors_in(value) if t.grad_fn is not None}


def kept_with_history(model: nn.Module) -> list[str]:
    """Names of the tensors that modules keep from an earlier forward, with the graph that they came from."""
    named = [(path, attribute, value) for path, m in model.named_modules() for attribute, value in vars(m).items()]
    return [
        f"{path}.{attribute}".lstrip(".")
        for path, attribute, value in named
        if not attribute.startswith("_") and any(t.grad_fn is not None for _, t in tensors_in(value))
    ]


def reason_against_a_copy(model: nn.Module) -> str:
    """Why `replica` would fail, or nothing; tensors are shared instead of copied, so that asking costs no memory."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if (name.endswith(HOOK_TABLES) and isinstance(value, dict)) or name == "message":
                memo[id(value)] = {}
            else:
                memo.update({id(tensor): tensor for _, tensor in tensors_in(value)})
    try:
        deep_copy(model, memo)
    except Exception as error:
        return f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})"
    return ""


def _computing_hooks(module: nn.Module) -> set[Any]:
    """Keys of the hooks without which the module would compute something else."""
    return {
        key
        for name, table in vars(module).items()
        if name.endswith("_hooks") and isinstance(table, dict)
        for key, hook in table.items()
        if type(hook).__module__.startswith(("torch.nn.utils.", "gnnstab.nn.", "gnnstab.probe.replaying.evaluating"))
    }


def unwrap(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside ``torch.compile`` and ``DistributedDataParallel`` wrappers, and the prefix of its module paths.

    Raises:
        UsageError: The model as a whole was scripted or traced.
    """
    prefix = ""
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            f"{type(model).__name__}: a scripted or traced model runs no Python code that could be watched; give gnnstab the module as it "
            "was before torch.jit.script or torch.jit.trace"
        )
    while True:
        for name in ("_orig_mod", "module"):
            inner = model._modules.get(name)
            if inner is not None and len(model._modules) == 1 and _is_wrapper(model):
                model, prefix = inner, f"{prefix}{name}."
                break
        else:
            return model, prefix


def _is_wrapper(model: nn.Module) -> bool:
    return type(model).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel")


def run_replica(
    twin: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    rng_state: Mapping[str, Any] | Tensor | None = None,
    autocast: Autocast | tuple[str, torch.dtype, bool] | None = None,
) -> Any:
    """One forward of ``twin`` on copies of the inputs, without autograd, from ``rng_state`` (now, when None)."""
    args, kwargs = copied(tuple(args)), copied(dict(kwargs or {}))
    cast = (
        torch.autocast(autocast[0], dtype=autocast[1], enabled=autocast[2], cache_enabled=False) if autocast else None
    )
    with forked_rng(rng_state), torch.no_grad(), cast or nullcontext():
        return eager(twin)(*args, **kwargs)


def eager(twin: nn.Module) -> Callable[..., Any]:
    """The call of a copy that runs all of its Python code.

    Hooks registered after compilation are not seen by compiled parts; run those eagerly."""
    if any(type(m).__name__ == "OptimizedModule" for m in twin.modules()):
        plain: Callable[..., Any] = torch.compiler.disable(twin)  # type: ignore[no-untyped-call]
        return plain
    return twin


@contextmanager
def forked_rng(state: Mapping[str, Any] | Tensor | None = None) -> Iterator[None]:
    """Set every generator to ``state`` inside, and give all of them back as they were."""
    numbers, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=_cuda_devices()):
            _set_rng(state)
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(python)


def _set_rng(state: Mapping[str, Any] | Tensor | None) -> None:
    if state is None:
        return
    states: Mapping[str, Any] = {"cpu": state} if isinstance(state, Tensor) else state
    if states.get("cpu") is not None:
        torch.set_rng_state(states["cpu"].cpu())
    for device, value in (states.get("cuda") or {}).items():
        torch.cuda.set_rng_state(value.cpu(), int(device))


def copied(value: Any) -> Any:
    """``value`` with every tensor cloned, through containers and torch_geometric data objects."""
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_floating_point() else value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copied(v) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(copied(v) for v in value)
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    if hasattr(value, "to_dict") and hasattr(value, "clone"):
        return value.clone()
    return value


def tracked(value: Any) -> Any:
    """A copy of the arguments whose floating tensors have a gradient, so that the first layer's input has one too.

    The copies are no leaves, so that a model may change its input in place, and the caller's tensors stay as they are.
    """
    if isinstance(value, Tensor):
        return value.detach().requires_grad_().clone() if value.is_floating_point() else value
    if isinstance(value, BaseData):
        return value.clone().apply(tracked)
    if isinstance(value, Mapping):
        return {k: tracked(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(tracked(v) for v in value)
    return value


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside ``value`` with the name of where it sits: ``x``, ``edge_attr``, ``0``, ``paper.x``."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, nn.Module):
        return
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from tensors_in(item, f"{name}.{position}" if name else str(position))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_in(item, f"{name}.{key}" if name else str(key))
    elif hasattr(value, "to_dict") and hasattr(value, "clone"):
        yield from tensors_in(value.to_dict(), name)
