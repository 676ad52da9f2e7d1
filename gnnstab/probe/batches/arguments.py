"""What the user calls a batch, as arguments of the model's forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData

from gnnstab.errors import NothingEvaluable, UsageError, printable
from gnnstab.probe.batches.batch_file import load_batch as load_batch
from gnnstab.probe.batches.data import fitting
from gnnstab.probe.batches.named_tensors import forward_names
from gnnstab.probe.replaying.replica import tensors_in

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one forward."""


def as_arguments(batch: Any, model: nn.Module) -> list[Arguments]:
    """Every forward that a batch asks for.

    A dict is keyword arguments, or the one argument of a forward that takes a single one of another name; a tuple is positional ones,
    any other iterable (a loader, a list) several batches. What the forward has no parameter for (labels behind the inputs, entries
    of other names) is left for the loss. A
    ``Data`` or ``HeteroData`` is handed over whole when the forward takes one argument of another name than its tensors have, else by
    the names of the forward's parameters; parameters of other names are ``x``, ``edge_index`` and ``edge_attr`` by their place.

    Raises:
        UsageError: Nothing that a forward could take.
        NothingEvaluable: Nothing but tensors without an entry.
    """
    found = _calls(batch, model)
    if all(map(is_empty, found)):
        raise NothingEvaluable(
            "the batch is empty: no tensor of real numbers in it has an entry, so that nothing can be measured; pass a batch with nodes"
        )
    return found


def is_empty(arguments: Arguments) -> bool:
    """True where there are tensors of real numbers, else any at all, and none has an entry, as in a graph without nodes."""
    tensors = [tensor for _, tensor in tensors_in(arguments)]
    numbers = [tensor for tensor in tensors if tensor.is_floating_point()] or tensors
    return bool(numbers) and all(tensor.layout == torch.strided and tensor.numel() == 0 for tensor in numbers)


def _calls(batch: Any, model: nn.Module) -> list[Arguments]:
    if isinstance(batch, BaseData):
        return [_from_data(batch, model)]
    if isinstance(batch, Tensor):
        return [((batch,), {})]
    if isinstance(batch, Mapping):
        names = forward_names(model, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        if len(names) == 1 and names == forward_names(model) and names[0] not in batch:
            return [((batch,), {})]  # A forward of one argument, which looks up in it what it needs.
        return [fitting((), {k if isinstance(k, str) else printable(k): v for k, v in batch.items()}, model)]
    if isinstance(batch, tuple):
        if batch and isinstance(batch[0], BaseData) and not any(isinstance(item, BaseData) for item in batch[1:]):
            args, kwargs = _from_data(batch[0], model)
            return [fitting((*args, *batch[1:]) if args else (), kwargs, model)]
        return [fitting(batch, {}, model)]
    if isinstance(batch, Iterable) and not isinstance(batch, (str, bytes)):
        found = [arguments for item in batch for arguments in _calls(item, model)]
        if found:
            return found
    raise UsageError(
        f"batch of type {type(batch).__name__} is none that a model could be called with; pass a PyG Data, a tuple of "
        "positional or a dict of keyword arguments, or an iterable of those"
    )


def _from_data(data: BaseData, model: nn.Module) -> Arguments:
    names = forward_names(model, inspect.Parameter.KEYWORD_ONLY)
    # One argument called like a tensor of the data is that tensor; `batch` is also what people call the whole.
    if len(names) <= 1 and not (isinstance(data, Data) and names != ["batch"] and all(name in data for name in names)):
        return (data,), {}
    known = {name: value for name in names if (value := _of_name(data, name)) is not None}
    known |= _by_place(data, names, known, model)
    return ((), known) if known else ((data,), {})


def _of_name(data: BaseData, name: str) -> Any:
    """What a batch holds under the name of a parameter; of a batch with types a dict, with or without ``_dict`` in the name."""
    if not isinstance(data, HeteroData):
        return data.get(name) if isinstance(data, Data) else None
    key = name.removesuffix("_dict")
    by_type = any(key in store for store in (*data.node_stores, *data.edge_stores))
    return data.collect(key) if by_type else data._global_store.get(name)


def _by_place(data: BaseData, names: list[str], known: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Features, edges and edge features for a forward that calls them by other names, where that answers all that it asks for."""
    parameters = inspect.signature(model.forward).parameters
    asked = {name for name in names if parameters[name].default is inspect.Parameter.empty and name not in known}
    order = dict(zip(names, ("x", "edge_index", "edge_attr"), strict=False))
    found = {
        name: value
        for name, key in order.items()
        if name in asked and key not in {other.removesuffix("_dict") for other in known}
        if (value := _of_name(data, key)) is not None
    }
    return found if set(found) == asked else {}
