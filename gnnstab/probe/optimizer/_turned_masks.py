"""Masks that a forward is given for its edges or its scores, and the same steps with each of them the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
    """Each mask of edges or of scores that the output depends on and that the loss does not read, with the bench that has it turned round."""
    masks = [set(_masks(bench, number)) for number in range(len(bench.calls))]
    return [found for name in sorted(set.intersection(*masks)) if (found := _turned(bench, name)) is not None]


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


def _turned(bench: Bench, name: str) -> tuple[Suspect, Bench] | None:
    calls, batches = [], []
    for (args, kwargs), batch in zip(bench.calls, bench.batches, strict=True):
        mask = named_tensors(args, kwargs, bench.model)[name]

        def turn(tensor: Any, mask: Tensor = mask) -> Any:
            same = tensor.dtype == torch.bool and tensor.shape == mask.shape and torch.equal(tensor, mask)
            return ~tensor if same else tensor

        calls.append(mapped((tuple(args), dict(kwargs)), turn))
        batches.append(mapped(batch, turn))
    other = replace(bench, calls=calls)
    try:
        if _read_by_loss(bench, other, batches[0], mask):
            return None
    except UsageError:
        return None
    suspect = Suspect(
        "masking", (name,), f"using the mask `{name}` the other way round", f"the mask `{name}` seems to be used the wrong way round", _same
    )  # fmt: skip
    return suspect, other


def _same(model: nn.Module) -> None:
    """The arguments are changed, and not the model."""


def _read_by_loss(bench: Bench, other: Bench, turned: Any, mask: Tensor) -> bool:
    """True where the loss asks for what the mask says, as for edges that are hidden to be foretold; also where the output stays or cannot be made.

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
        if not isinstance(output, Tensor) or output.shape != changed.shape or torch.equal(output, changed):
            return True
        with forked_rng(state), torch.enable_grad():
            leaf = output.detach().requires_grad_()
            own = bench.loss(leaf, bench.batches[0])
            own.backward()  # type: ignore[no-untyped-call]
            again = bench.loss(leaf, turned)
    except Exception as error:
        let_through(error)
        return True
    if leaf.grad is None or not torch.equal(own, again):
        return True
    asked = leaf.grad != 0
    return any(asked.shape == way.shape and torch.equal(asked, way) for way in (mask, ~mask))
