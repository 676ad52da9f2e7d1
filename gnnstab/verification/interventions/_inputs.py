"""Suspects in the batch: tensors whose scale differs from that of standardised features."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from gnnstab.characters import counted
from gnnstab.probe.batches.named_tensors import named_tensors, written
from gnnstab.probe.batches.roles import deviating, is_target, standardised
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records.vocabulary import PLACE_RMS, PLACE_SATURATED_SHARE
from gnnstab.rules.queries import names
from gnnstab.verification.interventions._measuring import Look
from gnnstab.verification.interventions._trial import Case, Edit, Trial

BEYOND = 30.0
"""Size of a row, in that of the median row, from which on it is an outlier; of normal numbers none is."""

FEW = 0.1
"""Most rows that are outliers."""


def standardise_input(case: Case, base: Look) -> Iterator[Trial]:
    """Every tensor of real numbers with a column that deviates, standardised over its rows; the others stay."""
    if not case.suffers(
        "attention.", "score.", "gradient.", "output.", "input.", "precision.", "channels.", PLACE_SATURATED_SHARE
    ):
        return
    fed = {s.layer for s in case.signals.find(PLACE_RMS) if s.detail.get("fed")}
    paths = _written(case)
    for name, tensor in tensors_of(case.batch, case.model).items():
        columns = deviating(tensor, whole=name in fed)
        if columns is None or is_target(name):
            continue
        size = float(tensor.detach().double().square().mean(0).sqrt()[columns].max())
        yield Trial(
            "standardise-input",
            "feature-scale",
            f"standardising {name}",
            f"the tensor {name} of the batch enters with columns of RMS up to {size:.3g}{_outlying(tensor, columns)}",
            Edit(batch=with_tensor(case.batch, tensor, standardised(tensor, columns))),
            deviates=True,
            place=name,
            written=paths.get(name, ""),
        )


def _written(case: Case) -> dict[str, str]:
    if isinstance(case.batch, Mapping):
        return written((), case.batch, case.model)
    return written(case.batch if isinstance(case.batch, tuple) else (case.batch,), {}, case.model)


def _outlying(tensor: Tensor, columns: Tensor) -> str:
    """Which rows of (N, D) alone make these columns large, in words; empty where it is more than a few, or none."""
    sizes = tensor.detach().double()[:, columns].abs().amax(1)
    usual = sizes.median()
    far = (sizes > BEYOND * usual).nonzero().flatten()
    if not usual > 0 or not 0 < len(far) <= FEW * len(sizes):
        return ""
    first, last = int(far[0]), int(far[-1])
    where = f"{first} to {last}" if last - first + 1 == len(far) > 1 else names([str(int(row)) for row in far])
    others = float(tensor.detach().double()[sizes <= BEYOND * usual][:, columns].square().mean(0).sqrt().max())
    return f", by {counted(len(far), 'row')} alone ({where}); the others have {others:.3g}"


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
