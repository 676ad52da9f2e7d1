"""What the loss of an evaluation does not show: an output that it does not read, and the training mode."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gnnstab.errors import let_through
from gnnstab.probe.operations.explaining import Explainer
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.provenance import locate_non_finite
from gnnstab.probe.replaying.replica import ForwardInputs, replica, run_replica, tensors_in
from gnnstab.records import Event


def beside_the_loss(twin: nn.Module, inputs: ForwardInputs) -> tuple[Event | None, list[str]]:
    """An event of one forward whose loss and gradients in evaluation mode are finite, and in words what was not seen.

    The output may hold a tensor that is NaN throughout, made by an operation of the forward; or its training mode gives NaN where the
    evaluation gives none. Copies of ``twin``, which is in evaluation mode, run; ``inputs`` are those of a forward without gradients.
    """
    try:
        output = run_replica(replica(twin), inputs)
        if any(bool(t.isnan().all()) for t in _numbers(output)):
            event = Event(0, "non-finite", mode="eval", message="the output holds NaN")
            return Explainer(twin).of_output(event, inputs), []
        trained = in_mode(replica(twin))
        if _holds_nan(output) or not _holds_nan(run_replica(trained, inputs)):
            return None, []
        event = locate_non_finite(trained, inputs) or Event(
            0, "non-finite", mode="train", message="the output holds NaN"
        )
        event = Explainer(trained).explain(event, [inputs])
    except Exception as error:  # As of a BatchNorm over a single row.
        let_through(error)
        return None, [f"the training mode, whose forward failed ({type(error).__name__})"]
    said = "in training mode alone, since the evaluation is finite"
    return replace(event, detail={**event.detail, "said": said}), []


def _numbers(output: Any) -> list[Any]:
    found = [t for _, t in tensors_in(output) if t.layout is torch.strided and t.numel()]
    return [t for t in found if t.is_floating_point() or t.is_complex()]


def _holds_nan(output: Any) -> bool:
    return any(bool(t.isnan().any()) for t in _numbers(output))
