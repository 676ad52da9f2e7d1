"""What the first loss of a run says: whether the output is so large that no output at all would do better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.operations.repeat import as_batch
from gnnstab.probe.pooling import poolings_watched
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.replaying.recovered_loss import recovered_loss
from gnnstab.probe.replaying.replica import replica, run_replica
from gnnstab.probe.replaying.zero_output import loss_over_zero
from gnnstab.records import Measure
from gnnstab.records.vocabulary import LOSS_OVER_ZERO, POOL_SUM_SIZE
from gnnstab.trace import TraceWriter

Loss = Callable[[Any, Any], Tensor]

SUSPICIOUS = 3.0
"""Loss over that of an output of zeros from which on one more forward looks for poolings by a sum."""


class Opening:
    """Waits for the loss of the forwards that are kept, and looks at the first of them.

    Args:
        recorder: Keeps the forwards.
        writer: Gets the measures.
        loss: ``loss(output, batch)``, where the user gave it.
    """

    def __init__(self, recorder: Recorder, writer: TraceWriter, loss: Loss | None) -> None:
        self._recorder, self._writer, self._loss = recorder, writer, loss
        self._waits = True

    def look(self) -> None:
        """Take the loss of the latest step, where its forward is kept."""
        kept, row = self._recorder.kept, self._recorder.row
        if kept is None or row is None or kept.answer is None or row.loss is None or row.step != kept.answer.step:
            return
        if math.isnan(kept.answer.loss):
            kept.answer.loss = row.loss
            waits, self._waits = self._waits, False
            if waits:
                self._measure(kept, row.step)

    def _measure(self, kept: ForwardInputs, step: int) -> None:
        loss, answer = loss_of(kept, self._loss), kept.answer
        if loss is None or answer is None or answer.output is None:
            return
        over = loss_over_zero(answer.output, answer.loss, as_batch(kept.args, kept.kwargs), loss)
        found = {} if math.isnan(over) else {LOSS_OVER_ZERO: over}
        if over > SUSPICIOUS:
            with poolings_watched() as pooled:
                run_replica(replica(self._recorder.model), kept)
            found |= {POOL_SUM_SIZE: float(max(pooled))} if pooled else {}
        self._writer.measures(
            [Measure(step, "", kept.mode, 0, name, -1, value, json.dumps({})) for name, value in found.items()]
        )


def loss_of(kept: ForwardInputs, loss: Loss | None) -> Loss | None:
    """The user's loss; where it was not handed over, the one that the gradient of the output shows; None where there is neither."""
    if loss is not None:
        return loss
    answer = kept.answer
    if answer is None or answer.output is None or answer.gradient is None:
        return None
    return recovered_loss(answer.output, answer.gradient, answer.loss)
