"""What the first loss of a run says: whether the output is so large that no output at all would do better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor

from gnnstab.errors import UsageError
from gnnstab.probe.attaching.forward_tracker import OPENING, Answer, ForwardInputs
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.operations.repeat import as_batch
from gnnstab.probe.pooling import sums_watched
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.replaying.marks import marked_targets, target_size
from gnnstab.probe.replaying.recovered_loss import recovered_loss
from gnnstab.probe.replaying.replica import replica, run_replica
from gnnstab.probe.replaying.zero_output import loss_over_zero
from gnnstab.records import Measure
from gnnstab.records.vocabulary import LOSS_OVER_ZERO
from gnnstab.trace import TraceWriter

Loss = Callable[[Any, Any], Tensor]

SUSPICIOUS = 3.0
"""Loss over that of an output of zeros from which on one more forward looks for sums."""


class Opening:
    """Waits for the loss of the forwards that are kept, and looks at the first of them.

    Args:
        recorder: Keeps the forwards.
        writer: Gets the measures.
        loss: ``loss(output, batch)``, where the user gave it.
    """

    def __init__(self, recorder: Recorder, writer: TraceWriter, loss: Loss | None) -> None:
        self._recorder, self._writer, self._loss = recorder, writer, loss
        self._looks, self._sized = True, False
        self._marks: list[Measure] = []
        self._waiting: dict[int, Answer] = {}
        """Step → its answer; from a device the row of a step comes one step later, when the next forward has answered already."""

    def look(self) -> None:
        """Take the loss of the latest row, where the output of its step is kept."""
        latest, row = self._recorder.state.answer, self._recorder.row
        if latest is not None and latest.step not in self._waiting:
            self._waiting = {step: a for step, a in self._waiting.items() if step >= latest.step - 1} | {
                latest.step: latest
            }
        if row is None or row.loss is None or (answer := self._waiting.get(row.step)) is None:
            return
        if math.isnan(answer.loss):
            answer.loss = row.loss
            if self._looks and answer.step < OPENING:
                self._measure(answer)

    def _measure(self, answer: Answer) -> None:
        """The first loss that is far off; of one whose forward is not kept as well, the forward that is kept shows the sums."""
        kept = self._recorder.kept
        own = self._loss if kept is not None and kept.answer is answer else None
        loss = own or recovered(answer, kept)
        if loss is None or kept is None or answer.output is None:
            return
        if not self._sized and answer.gradient is not None:
            self._sized = True
            self._writer.measures(target_size(answer.output, answer.gradient, answer.loss, answer.step, kept.mode))
        if not self._marks and answer.gradient is not None:
            self._marks = marked_targets(answer.output, answer.gradient, answer.loss, answer.step, kept.mode)
            self._writer.measures(self._marks)
        over = loss_over_zero(answer.output, answer.loss, as_batch(kept.args, kept.kwargs), loss)
        if not over > SUSPICIOUS:
            return
        self._looks = False
        with sums_watched() as sums, suppress(UsageError):  # Of a model that cannot be copied they are not seen.
            run_replica(replica(self._recorder.model), kept)
        detail = json.dumps({"zeros": answer.loss / over})
        far_off = Measure(answer.step, "", kept.mode, 0, LOSS_OVER_ZERO, -1, over, detail)
        self._writer.measures([far_off, *sums.measures(answer.step, kept.mode)])


def loss_of(kept: ForwardInputs, loss: Loss | None) -> Loss | None:
    """The user's loss; where it was not handed over, the one that the gradient of the output shows; None where there is neither."""
    return loss if loss is not None or kept.answer is None else recovered(kept.answer, kept)


def recovered(answer: Answer, kept: ForwardInputs | None) -> Loss | None:
    """The loss with the targets of the step of this answer, whose forward is ``kept`` or another one; None where its gradient shows none."""
    if answer.output is None or answer.gradient is None:
        return None
    given = named_tensors(kept.args, kept.kwargs) if kept is not None and kept.answer is answer else {}
    return recovered_loss(answer.output, answer.gradient, answer.loss, given.values())
