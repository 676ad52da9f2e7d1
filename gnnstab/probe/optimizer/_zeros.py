"""The loss of a model that has learned nothing: that of outputs of zeros."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.errors import let_through
from gnnstab.probe.optimizer._copies import twins
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.probe.replaying.zero_output import loss_over_zero

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench


def of_zeros(bench: Bench, given: Sequence[tuple[Any, Tensor]] = ()) -> float:
    """Mean loss of outputs of zeros; inf where it is not known. ``given`` are output and loss of the first batches, where they are at hand."""
    model, _ = twins(bench.model, bench.optimizer)
    values = []
    with forked_rng(), torch.no_grad():
        for number, batch in enumerate(bench.batches):
            try:
                output, loss = given[number] if number < len(given) else bench.forward(model, number)
            except Exception as error:
                let_through(error)
                return math.inf
            values.append(float(loss) / loss_over_zero(output, float(loss), batch, bench.loss))
    mean = sum(values) / len(values)
    return mean if mean > 0 else math.inf
