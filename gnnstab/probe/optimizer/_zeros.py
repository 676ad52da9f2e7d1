"""The loss of a model that has learned nothing: that of outputs of zeros, or of the best ones that are all the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.errors import let_through
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.probe.replaying.zero_output import loss_over_zero

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench


def of_zeros(bench: Bench, given: Sequence[tuple[Any, Tensor]] = ()) -> float:
    """Mean loss of outputs of zeros; inf where it is not known. ``given`` are output and loss of the first batches, where they are at hand."""
    model = bench.twin() if len(given) < len(bench.batches) else None
    values = []
    with forked_rng(), torch.no_grad():
        for number, batch in enumerate(bench.batches):
            try:
                output, loss = given[number] if model is None or number < len(given) else bench.forward(model, number)
            except Exception as error:
                let_through(error)
                return math.inf
            values.append(float(loss) / loss_over_zero(output, float(loss), batch, bench.loss))
    mean = sum(values) / len(values)
    return mean if mean > 0 else math.inf


def of_constants(bench: Bench) -> float:
    """Mean loss where all rows of an output are the same, and the best that do; inf where it is not known. To foretell a mean is nothing learned."""
    model = bench.twin()
    total = 0.0
    with forked_rng(), torch.enable_grad():
        for number, batch in enumerate(bench.batches):
            try:
                output = bench.forward(model, number)[0].detach()
                row = output.mean(0).requires_grad_()
                search = torch.optim.LBFGS([row], max_iter=20, line_search_fn="strong_wolfe")

                def closure() -> Tensor:
                    search.zero_grad()  # noqa: B023
                    loss = bench.loss(row.expand_as(output), batch)  # noqa: B023
                    loss.backward()  # type: ignore[no-untyped-call]
                    return loss

                search.step(closure)  # type: ignore[no-untyped-call]
                total += float(closure().detach())
            except Exception as error:
                let_through(error)
                return math.inf
    mean = total / len(bench.batches)
    return mean if mean > 0 else math.inf
