"""Surveys during a run: rarely, on a copy, with the inputs of the step that is ending."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import is_lazy

from gnnstab.errors import UsageError
from gnnstab.layers.lazy import unwritten
from gnnstab.left_out import left_out
from gnnstab.probe.places.survey import Place, survey, to_json
from gnnstab.probe.replaying.read_out import read_out
from gnnstab.probe.replaying.replica import replica
from gnnstab.records.vocabulary import (
    PLACE_ATTENTION_SUM,
    PLACE_COLUMN_RATIO,
    PLACE_COPIED_UNITS,
    PLACE_GAIN,
    PLACE_MASKED_WEIGHT,
    PLACE_NON_FINITE,
    PLACE_OUTPUT,
    PLACE_RMS,
    PLACE_UNREACHED_TARGETS,
    PLACE_ZERO_WEIGHTS,
)
from gnnstab.stored import bytes_of, is_finite

if TYPE_CHECKING:
    from gnnstab.probe.attaching.forward_tracker import ForwardInputs

_LARGEST = (
    PLACE_RMS,
    PLACE_COLUMN_RATIO,
    PLACE_NON_FINITE,
    PLACE_MASKED_WEIGHT,
    PLACE_UNREACHED_TARGETS,
    PLACE_ATTENTION_SUM,
)
"""Numbers of the data, the weight behind a mask and sums that grow: the largest of the run counts. Of everything else the latest does."""

_FIRST = (PLACE_OUTPUT, PLACE_GAIN, PLACE_ZERO_WEIGHTS, PLACE_COPIED_UNITS)
"""What was so before training."""


class _Meta(Protocol):
    def meta(self, key: str, value: str) -> None: ...


LARGEST_HELD = 64 * 2**20
"""Bytes of a model up to which a copy of it as it was is kept for a later look."""


class Surveys:
    """Looks at every place in the 1st, 2nd, 4th, 8th, … step that it is asked in, and at the end.

    Args:
        model: The model; a copy of it runs.
        writer: The trace; the rows are its metadata ``places``.
        wanted: False for never.
        patient: The first look waits until the step that it is asked in next, the end, or `catch_up`: a copy of the model and of its inputs
            is kept for it, unless that is too large.
    """

    def __init__(self, model: nn.Module, writer: _Meta, wanted: bool = True, *, patient: bool = False) -> None:
        self._model = model
        self._writer = writer
        self._wanted, self._patient = wanted, patient
        self._waiting: tuple[nn.Module, ForwardInputs, Any] | None = None
        self._asked = 0
        self._given: tuple[int, nn.Module] | None = None
        self._found: dict[tuple[str, str], Place] = {}

    def step(self, inputs: Mapping[str, ForwardInputs], kept: ForwardInputs | None) -> bool:
        """The step with these inputs of the latest forward in each mode is ending; the weights have not moved yet.

        ``kept`` is a copy of the inputs of one of them, which nobody will change. True when a copy of the model was made.
        """
        forward = inputs.get("train") or inputs.get("eval-grad")
        if forward is None or not self._wanted:
            return False
        self.catch_up()
        given, self._given = self._given, None
        self._asked += 1
        if self._asked & (self._asked - 1):
            return False
        size = bytes_of(t for t in (*self._model.parameters(), *self._model.buffers()) if not is_lazy(t))
        if (
            self._patient
            and self._asked == 1
            and kept is not None
            and kept.mode == forward.mode
            and size <= LARGEST_HELD
        ):
            return self._wait(kept, given)
        return self._look(self._model, forward, forward.answer)

    def give(self, step: int, twin: nn.Module) -> None:
        """Here is a copy of the model as it is in ``step``; it saves the first look from making one."""
        if not self._asked:
            self._given = step, twin

    def catch_up(self) -> None:
        """Look at what the first step has left, if it still waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._look(*waiting)

    def end(self, kept: ForwardInputs | None) -> None:
        """The run is over: look once more with inputs that were kept, unless the weights are lost and would show nothing."""
        self.catch_up()
        if kept is not None and self._found and self._has_finite_weights():
            self._look(self._model, kept, kept.answer)

    def _wait(self, kept: ForwardInputs, given: tuple[int, nn.Module] | None) -> bool:
        try:
            own = given is not None and given[0] == kept.answer.step
            self._waiting = given[1] if given and own else replica(self._model), kept, kept.answer
        except UsageError:
            return False  # A model that cannot be copied: the run itself is recorded all the same.
        return True

    def _has_finite_weights(self) -> bool:
        lazy = unwritten(self._model)
        return all(is_finite(p) for name, p in self._model.named_parameters() if name not in lazy)

    def _look(self, model: nn.Module, forward: ForwardInputs, answer: Any) -> bool:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Ranks may be asked in different steps, and a forward may wait for the others (SyncBatchNorm).
            left_out(
                "several processes train the model, whose forward may wait for the others; its places were not looked at"
            )
            return False
        cast = forward.autocast
        context = torch.autocast(cast.device_type, dtype=cast.dtype) if cast.enabled else nullcontext()
        try:
            found = survey(
                model, forward.args, forward.kwargs,
                objective=read_out, rng=forward.rng, cast=context,
                came_back=getattr(answer, "gradient", None), told=(getattr(answer, "output", None), getattr(answer, "loss", math.nan)),
            )  # fmt: skip
        except UsageError:
            return False
        except RuntimeError as error:  # Any other failure is one of the tool, and told as such.
            left_out(f"the places of {type(self._model).__name__} were not looked at: {error}")
            return False
        self._keep(found)
        return True

    def _keep(self, found: list[Place]) -> None:
        kept = {key: place for key, place in self._found.items() if key[0] in (*_LARGEST, *_FIRST)}
        for place in found:
            if self._found and place.signal in _FIRST:
                continue
            before = kept.get((place.signal, place.name))
            if before is None or (place.signal in _LARGEST and not before.value >= place.value):
                kept[place.signal, place.name] = place
        self._found = kept
        self._writer.meta("places", to_json(list(kept.values())))
