"""Suspects in the batch: tensors whose scale differs from that of standardised features."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import is_target, standardised
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records.vocabulary import PLACE_RMS, PLACE_SATURATED_SHARE
from gnnstab.verification.interventions._measuring import Look
from gnnstab.verification.interventions._trial import Case, Edit, Trial

LARGE = 4.0
"""RMS or |mean| / deviation of a column from which it deviates: an input of RMS 4 gives 16 times the logits of one of RMS 1."""


def standardise_input(case: Case, base: Look) -> Iterator[Trial]:
    """Every tensor of real numbers with a column that deviates, standardised over its rows; the others stay."""
    if not case.suffers(
        "attention.", "score.", "gradient.", "output.", "input.", "precision.", "channels.", PLACE_SATURATED_SHARE
    ):
        return
    fed = {s.layer for s in case.signals.find(PLACE_RMS) if s.detail.get("fed")}
    for name, tensor in tensors_of(case.batch, case.model).items():
        columns = deviating(tensor, whole=name in fed)
        if columns is None or is_target(name):
            continue
        size = float(tensor.detach().double().square().mean(0).sqrt()[columns].max())
        yield Trial(
            "standardise-input",
            "feature-scale",
            f"standardising {name}",
            f"the tensor {name} of the batch enters with columns of RMS up to {size:.3g}",
            Edit(batch=with_tensor(case.batch, tensor, standardised(tensor, columns))),
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


def as_batch(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The arguments of one forward as a batch: a ``Data`` itself, else by the names of the forward's parameters."""
    if len(args) == 1 and not kwargs and isinstance(args[0], (BaseData, Tensor)):
        return args[0]
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    if len(bound.arguments) == len(args) + len(kwargs):
        return dict(bound.arguments)
    return args if not kwargs else dict(kwargs)


def tensors_of(batch: Any, model: nn.Module) -> dict[str, Tensor]:
    """Name → tensor of everything in a batch: ``edge_attr``, ``x_dict.user``, or the name of the forward's parameter."""
    if isinstance(batch, Mapping):
        return named_tensors((), batch, model)
    return named_tensors(batch if isinstance(batch, tuple) else (batch,), model=model)


def with_tensor(batch: Any, old: Tensor, new: Tensor) -> Any:
    """A shallow copy of the batch that holds one tensor in the place of another."""
    return mapped(batch, lambda tensor: new if tensor is old else tensor)
