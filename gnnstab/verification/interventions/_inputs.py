"""Suspects in the batch: tensors whose scale differs from that of standardised features."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from gnnstab.records.vocabulary import PLACE_RMS
from gnnstab.verification.interventions._measuring import Look
from gnnstab.verification.interventions._trial import Case, Edit, Trial

LARGE = 4.0
"""RMS or |mean| / deviation of a column from which it deviates: an input of RMS 4 gives 16 times the logits of one of RMS 1."""

_TARGETS = frozenset({"y", "target", "targets", "label", "labels"})
"""Names under which a batch holds what the loss compares with; the model does not read them."""


def standardise_input(case: Case, base: Look) -> Iterator[Trial]:
    """Every tensor of real numbers with a column that deviates, standardised over its rows; the others stay."""
    if not case.suffers("attention.", "score.", "gradient.", "output.", "input.", "precision.", "channels."):
        return
    fed = {s.layer for s in case.signals.find(PLACE_RMS) if s.detail.get("fed")}
    for name, tensor in named_tensors(case.batch, case.model):
        columns = deviating(tensor, whole=name in fed)
        if columns is None or name.rpartition(".")[2] in _TARGETS:
            continue
        size = float(tensor.detach().double().square().mean(0).sqrt()[columns].max())
        yield Trial(
            "standardise-input",
            "feature-scale",
            f"standardising {name}",
            f"the tensor {name} of the batch enters with columns of RMS up to {size:.3g}",
            Edit(batch=with_tensor(case.batch, case.model, name, standardised(tensor, columns))),
            deviates=True,
            place=name,
        )


def deviating(tensor: Tensor, *, whole: bool) -> Tensor | None:
    """The columns (n,) of features (N, D) of real numbers that are large or far from zero; None when there is none.

    Columns of whole numbers are ids, counts, masks or one-hot codes, whose size says nothing; with ``whole`` a weight multiplies them.
    """
    if not tensor.is_floating_point() or tensor.dim() != 2 or tensor.shape[0] < 2 or not tensor.numel():
        return None
    values = tensor.detach().double()
    size, spread = values.square().mean(0).sqrt(), values.std(0)
    counted = (values == values.round()).all(0) & (not whole)
    off = (size > LARGE) & ~counted & torch.isfinite(size) & (spread > 0)
    return off.nonzero().flatten() if bool(off.any()) else None


def standardised(tensor: Tensor, columns: Tensor) -> Tensor:
    """(x − mean) / std of the given columns."""
    values = tensor.detach().clone()
    part = values[:, columns].double()
    values[:, columns] = ((part - part.mean(0)) / part.std(0)).to(values.dtype)
    return values


def as_batch(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of one forward as a batch: a ``Data`` itself, else by the names of the forward's parameters."""
    if len(args) == 1 and not kwargs and isinstance(args[0], (BaseData, Tensor)):
        return args[0]
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    if len(bound.arguments) == len(args) + len(kwargs):
        return dict(bound.arguments)
    return args if not kwargs else dict(kwargs)


def named_tensors(batch: Any, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of everything in a batch: ``edge_attr``, ``x_dict.user``, or the name of the forward's parameter."""
    if isinstance(batch, BaseData):
        for store in batch.stores:
            kind = getattr(store, "_key", None)
            path = "" if kind is None else f"{kind if isinstance(kind, str) else '__'.join(kind)}."
            yield from ((f"{path}{key}", value) for key, value in store.items() if isinstance(value, Tensor))
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _below(str(key), value)
    elif isinstance(batch, tuple):
        for name, value in zip(_parameters(model, len(batch)), batch, strict=True):
            yield from _below(name, value)
    elif isinstance(batch, Tensor):
        yield _parameters(model, 1)[0], batch


def _below(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        yield from ((f"{name}.{key}", one) for key, one in value.items() if isinstance(one, Tensor))


def _parameters(model: nn.Module, count: int) -> list[str]:
    names = list(inspect.signature(model.forward).parameters)[:count]
    return names + [f"argument {i}" for i in range(len(names), count)]


def with_tensor(batch: Any, model: nn.Module, name: str, tensor: Tensor) -> Any:
    """A shallow copy of the batch that holds ``tensor`` under this name."""
    if isinstance(batch, BaseData):
        changed = copy.copy(batch)
        for store, (kind, key) in ((s, _split(name)) for s in changed.stores):
            own = getattr(store, "_key", None)
            own = "" if own is None else own if isinstance(own, str) else "__".join(own)
            if own == kind:
                store[key] = tensor
        return changed
    if isinstance(batch, Mapping):
        return {key: _put(str(key), value, name, tensor) for key, value in batch.items()}
    if isinstance(batch, tuple):
        named = zip(_parameters(model, len(batch)), batch, strict=True)
        return tuple(_put(key, value, name, tensor) for key, value in named)
    return tensor


def _put(key: str, value: Any, name: str, tensor: Tensor) -> Any:
    if isinstance(value, Tensor):
        return tensor if key == name else value
    if isinstance(value, Mapping):
        return {inner: tensor if f"{key}.{inner}" == name else one for inner, one in value.items()}
    return value


def _split(name: str) -> tuple[str, str]:
    kind, _, key = name.rpartition(".")
    return kind, key
