"""Steps for half of the rows that a loss reads: what they do to the loss of all of them cannot be learned by heart."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.replaying.replica import forked_rng

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench

FEWEST = 16
"""Rows that the loss reads from which on half of them say something of the others."""

BY_HEART = math.log(2)
"""Fall of ln(loss) that steps for half of the rows bring about at most, once these are learned by heart, where the others gain nothing."""


def halved(bench: Bench, *, others: bool = False) -> Bench | None:
    """The same bench, whose gradients come from half of the rows that its loss reads, and whose losses are those of all; None where these are few.

    ``others``: whose losses are those of all with the rows that are learned left as they were at first.
    """
    model = bench.twin()
    chosen: list[Tensor] = []
    with forked_rng(), torch.enable_grad():
        for number in range(len(bench.batches)):
            try:
                output, _ = bench.forward(model, number)
                if not isinstance(output, Tensor) or not output.requires_grad or not output.dim():
                    return None
                leaf = output.detach().requires_grad_()
                bench.loss(leaf, bench.batches[number]).backward()  # type: ignore[no-untyped-call]
            except Exception as error:
                let_through(error)
                return None
            gradient = leaf.grad
            if gradient is None:
                return None
            # In padded sets each node may have one answer; else the last axis holds the numbers of one.
            shapes = [t.shape for t in named_tensors(*bench.calls[number]).values() if t.is_floating_point()]
            each = gradient.dim() == 1 or any(len(s) == 3 and s[:2] == gradient.shape for s in shapes)
            rows = gradient if each else (gradient != 0).any(-1)
            read = rows.flatten().nonzero().flatten()
            if len(read) < FEWEST:
                return None
            order = torch.randperm(len(read), generator=torch.Generator().manual_seed(0)).to(read.device)
            learned = torch.zeros(rows.numel(), dtype=torch.bool, device=read.device)
            learned[read[order[: len(read) // 2]]] = True
            chosen.append(learned.view(rows.shape))
    numbers = {id(batch): number for number, batch in enumerate(bench.batches)}
    began: dict[int, Tensor] = {}

    def loss(output: Any, batch: Any) -> Tensor:
        learned = chosen[numbers[id(batch)]]
        if not isinstance(output, Tensor) or output.shape[: learned.dim()] != learned.shape:
            raise UsageError("the output has another shape than before")
        learned = learned.view(*learned.shape, *[1] * (output.dim() - learned.dim()))
        own = bench.loss(torch.where(learned, output, output.detach()), batch)
        if not others:
            return own
        first = began.setdefault(id(batch), output.detach().clone())
        return own + (bench.loss(torch.where(learned, first, output.detach()), batch) - own).detach()

    return replace(bench, loss=loss)
