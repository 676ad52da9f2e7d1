"""Parameters inside a checkpoint that asks its inputs for a gradient, where these have none: its backward then goes nowhere."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._passes import Row
from gnnstab.probe.replaying.replica import copied, eager, forked_rng, replica, tensors_in
from gnnstab.records.vocabulary import PLACE_WITHOUT_GRADIENT

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

CHECKPOINTED = "checkpoint"
"""Why parameters have no gradient: they stand inside a reentrant checkpoint whose inputs have none."""


def rows(
    model: nn.Module,
    given: tuple[tuple[Any, ...], Mapping[str, Any]],
    seen: ForwardView,
    objective: Callable[[Any], Tensor],
    rng: Any,
    cast: AbstractContextManager[Any],
) -> Iterator[Row]:
    """After the backward of ``seen``, whose inputs have a gradient: which parameters that had one lose it with the inputs as they were ``given``.

    Only where a reentrant checkpoint (``torch.utils.checkpoint``) stands in the graph; another copy runs once forward and backward.
    """
    if not any(type(node).__name__.startswith("CheckpointFunctionBackward") for node in autograd.walk(seen.outputs)):
        return
    args, kwargs = given
    twin = replica(model)
    for parameter in twin.parameters():
        parameter.grad = None
    with forked_rng(rng), torch.enable_grad(), copy.copy(cast), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The checkpoint warns of just that.
        own = copied(tuple(args)), copied(dict(kwargs))
        for (_, before), (_, tensor) in zip(tensors_in([args, kwargs]), tensors_in(list(own)), strict=True):
            tensor.requires_grad_(before.requires_grad)
        loss = objective(eager(twin)(*own[0], **own[1]))
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    after = dict(twin.named_parameters())
    lost = [name for name, p in seen.model.named_parameters() if p.grad is not None and after[name].grad is None]
    if lost:
        yield PLACE_WITHOUT_GRADIENT, lost[0], float(len(lost)), {"parameters": lost[:200], "why": CHECKPOINTED}
