"""Masks that a forward is given for its edges or its scores, and the same steps with each of them the other way round; or, of one that changes nothing, without the edges that it marks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.optimizer._copies import twins
from gnnstab.probe.optimizer._suspects import Suspect
from gnnstab.probe.replaying.replica import forked_rng, mapped, rng_snapshot

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench


def turned_masks(bench: Bench) -> list[tuple[Suspect, Bench]]:
    """Each mask of edges or of scores that the loss does not read, with the bench that has it turned round, or applied where the output stays."""
    masks = [set(_masks(bench, number)) for number in range(len(bench.calls))]
    return [found for name in sorted(set.intersection(*masks)) for found in _tried(bench, name)]


def _masks(bench: Bench, number: int) -> Iterator[str]:
    """Names of the masks in the arguments of one forward: one entry for each edge, or for each pair of nodes."""
    args, kwargs = bench.calls[number]
    named = named_tensors(args, kwargs, bench.model)
    edges = {t.shape[1] for t in named.values() if t.dim() == 2 and len(t) == 2 and not t.is_floating_point()}
    nodes = {len(t) for t in named.values() if t.dim() == 2 and t.is_floating_point()}
    for name, tensor in named.items():
        if tensor.dtype != torch.bool or not tensor.dim() or not tensor.any() or tensor.all():
            continue
        pairs = tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2] and not _causal(tensor)
        if pairs or (len(tensor) in edges - nodes and tensor.numel() == len(tensor)):
            yield name


def _causal(mask: Tensor) -> bool:
    """True for a mask of what comes later, or earlier: turned round it would show the answer."""
    return any(bool((part.amax((-1, -2)) == 0).all()) for way in (mask, ~mask) for part in (way.triu(1), way.tril(-1)))


def _tried(bench: Bench, name: str) -> Iterator[tuple[Suspect, Bench]]:
    other, turned = _changed(bench, name, _turn)
    mask = named_tensors(*bench.calls[0], bench.model)[name]
    try:
        read, moves = _read_by_loss(bench, other, turned[0], mask)
    except UsageError:
        return
    if not read and moves:
        yield Suspect(
            "masking", (name,), f"using the mask `{name}` the other way round", f"the mask `{name}` seems to be used the wrong way round", _same
        ), other  # fmt: skip
    elif not read and mask.dim() == 1:
        for kept, which in ((True, "is not set"), (False, "is set")):
            yield Suspect(
                "masking", (name,), f"leaving out the edges for which it {which}",
                f"the mask `{name}` of edges is handed over and changes nothing in the output", _same,
            ), _changed(bench, name, partial(_without, kept))[0]  # fmt: skip


Change = Callable[[Tensor, Any], Any]
"""(the mask, a tensor of the batch) → what stands in its place."""


def _changed(bench: Bench, name: str, change: Change) -> tuple[Bench, list[Any]]:
    """The bench with other arguments, and the batches changed alike."""
    calls, batches = [], []
    for (args, kwargs), batch in zip(bench.calls, bench.batches, strict=True):
        mask = named_tensors(args, kwargs, bench.model)[name]
        calls.append(mapped((tuple(args), dict(kwargs)), partial(change, mask)))
        batches.append(mapped(batch, partial(change, mask)))
    return replace(bench, calls=calls), batches


def _turn(mask: Tensor, tensor: Any) -> Any:
    same = tensor.dtype == torch.bool and tensor.shape == mask.shape and torch.equal(tensor, mask)
    return ~tensor if same else tensor


def _without(kept: bool, mask: Tensor, tensor: Any) -> Any:
    """Edge lists, and what holds a row for each edge, without the edges whose entry in the mask is not ``kept``."""
    if tensor.dim() == 2 and tensor.shape == (2, len(mask)) and not tensor.is_floating_point():
        return tensor[:, mask == kept]
    return tensor[mask == kept] if tensor.dim() and len(tensor) == len(mask) else tensor


def _same(model: nn.Module) -> None:
    """The arguments are changed, and not the model."""


def _read_by_loss(bench: Bench, other: Bench, turned: Any, mask: Tensor) -> tuple[bool, bool]:
    """Whether the loss asks for what the mask says, as for edges that are hidden to be foretold, or nothing can be tried; and whether the output moves with it.

    Raises:
        UsageError: Model or optimizer cannot be copied.
    """
    model, _ = twins(bench.model, bench.optimizer)
    state = rng_snapshot()
    try:
        with forked_rng(state), torch.no_grad():
            output, _ = bench.forward(model, 0)
        with forked_rng(state), torch.no_grad():
            changed, _ = other.forward(model, 0)
        if not isinstance(output, Tensor) or output.shape != changed.shape:
            return True, True
        with forked_rng(state), torch.enable_grad():
            leaf = output.detach().requires_grad_()
            own = bench.loss(leaf, bench.batches[0])
            own.backward()  # type: ignore[no-untyped-call]
            again = bench.loss(leaf, turned)
    except Exception as error:
        let_through(error)
        return True, True
    if leaf.grad is None or not torch.equal(own, again):
        return True, True
    asked = leaf.grad != 0
    read = any(asked.shape == way.shape and torch.equal(asked, way) for way in (mask, ~mask))
    return read, not torch.equal(output, changed)
