"""The forward of the recorded model as a whole: what went in, and what is needed to run it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.left_out import left_out
from gnnstab.probe.attaching.hooks import Hook, ignore, keep_out_of_copies, take_off
from gnnstab.probe.attaching.identity_path import Ways, ways
from gnnstab.probe.attaching.norms import Norms, batch_vectors
from gnnstab.probe.buffering.series_ids import MODES
from gnnstab.probe.error_guard import ErrorGuard
from gnnstab.probe.layers.layer_recorder import LayerRecorder
from gnnstab.probe.operations.format_watch import FormatWatch
from gnnstab.probe.operations.in_place import StepWatch, leave_closed
from gnnstab.probe.replaying.computing_hooks import changes_input
from gnnstab.probe.replaying.reach import held_tensors
from gnnstab.probe.replaying.replica import NO_AUTOCAST, Autocast, copied, rng_snapshot, tensors_in, unwrap
from gnnstab.probe.replaying.replica import ForwardInputs as ForwardInputs
from gnnstab.probe.replaying.skipped_step import MOST, SkippedForward, answers_in, histories, keep_gradients
from gnnstab.probe.state import State
from gnnstab.probe.statistics import graph_measures, node_measures
from gnnstab.stored import bytes_of, stored
from gnnstab.torch_private import autocasts, graph_task, transforms

LARGEST_KEPT = 64 * 2**20
"""Bytes of the inputs of one forward up to which a copy of them is kept for the end of the run."""


OPENING = 10
"""Steps of the beginning of which every output is kept until its loss is known: batches differ, and one may be small."""


class Answer:
    """What the forward of one step returned, what came back to it, and the loss of that step once it is known."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.loss = math.nan
        self.scale: Tensor | float | None = None
        """What a GradScaler has multiplied the loss with before its backward; None without one."""

        self.output: Tensor | None = None
        """A copy; None where the forward returned not exactly one tensor with a history, or one larger than `LARGEST_KEPT`."""

        self._gradients: list[Tensor | None] = []

    @property
    def gradient(self) -> Tensor | None:
        """Of the loss with respect to the output, a scaler's scale taken out; None before a backward."""
        found = self._gradients[0] if self._gradients else None
        if found is None or self.scale is None:
            return found
        # In 16 bits most of what is left would be 0.
        return found.float() / (self.scale.to(found.device) if isinstance(self.scale, Tensor) else self.scale)

    def take(self, output: Any, inputs: ForwardInputs, error_guard: ErrorGuard) -> None:
        """The forward has returned."""
        found = histories(output)
        if len(found) == 1 and found[0].element_size() * found[0].numel() <= LARGEST_KEPT:
            self.output = found[0].detach().clone()
            self._gradients = keep_gradients(output, inputs, error_guard).gradients


class ForwardTracker:
    """Marks where forwards of the model begin and end, and keeps the inputs of the latest one per mode."""

    def __init__(self, state: State, layers: Iterable[LayerRecorder], norms: Norms, keep: bool = True) -> None:
        self.last: dict[str, ForwardInputs] = {}
        """Mode → latest inputs of this step."""

        self.before: dict[str, ForwardInputs] = {}
        """Mode → latest inputs of the step before, until the next forward begins; only where ``keep_before``."""

        self.keep_before = False
        """True when a loss that is told after the step's end can be repeated, which needs the inputs of that step."""

        self.calls: list[ForwardInputs] = []
        """Forwards with gradients of this step, the first `MOST`; held by reference."""

        self.watching: StepWatch | None = None
        """Watches the operations of this step in place, after one that went wrong."""

        self.between: Callable[[], object] = ignore
        """Called when another forward with gradients begins in a step that has had a backward."""

        self.skipped: list[SkippedForward] = []
        """Forwards with gradients of a step that is left out, the first `MOST`."""

        self.forwards = 0
        """Forwards with gradients of this step."""

        self.bad_evaluation: ForwardInputs | None = None
        """Of this step, one whose output held NaN; one of training too where another had gone before it without a backward."""

        self.evaluated: Tensor | None = None
        """Whether the output of any evaluation on a device held NaN, (); there it is read when the run has ended."""

        self.nothing: Tensor | None = None
        """Whether a tensor of the latest output of a full-tier step held NaN alone, (); it is read when the run has ended."""

        self.ways = Ways({}, {})
        """How the layers stand to each other, after the first training forward."""

        self.kept: ForwardInputs | None = None
        """A copy of what the latest forward of a full-tier step got, kept beyond the step so that causes can be undone at the
        end of a run; None where it is larger than `LARGEST_KEPT`."""

        self._state = state
        self._layers = tuple(layers)
        self._norms = norms
        self._keep = keep
        self._handles: list[Any] = []
        self._hooks: list[Hook] = []
        self._hooked: nn.Module | None = None
        self._full_step = -1

    def attach(self, model: nn.Module) -> None:
        """Hook the model; to be called after its layers were hooked, since the model may be a layer itself."""
        state = self._state
        before = Hook("the model's forward", self._before, state.error_guard, clock=state.clock, skip=state.foreign)
        after = Hook("the model's output", self._after, state.error_guard, clock=state.clock, skip=state.foreign)
        self._hooks = [before, after]
        self._handles = [
            model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
            model.register_forward_hook(after),
        ]
        self._hooked = model
        if self._keep:
            self._state.formats = FormatWatch(model)
        keep_out_of_copies(model)

    def detach(self) -> None:
        """Remove the hooks and release everything."""
        take_off("the hooks of the model", self._handles, self._hooks, self._state.error_guard)
        if self._hooked is not None:
            keep_out_of_copies(self._hooked)
        leave_closed()
        if self._state.formats is not None:
            self._state.formats.ended()
        self.end_step()
        self.before = {}

    def close_watch(self) -> None:
        """Stop watching operations in place."""
        if self.watching is not None:
            self.watching.close()
            self.watching = None

    def end_step(self) -> None:
        """Release the inputs."""
        if self.keep_before:
            self.before = dict(self.last)
        self.last.clear()
        self.calls.clear()
        self.skipped.clear()
        self.bad_evaluation = None
        self.forwards = 0
        if self._state.layer_trace is not None:
            # A forward ended in an exception and nobody called the model again.
            self._state.layer_trace = self._state.norms = None
            self._norms.stop()

    def _before(self, grad: bool, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = self._state
        if graph_task() != -1:
            return
        if grad and state.backward:
            state.error_guard.guard("gradients that are gone", self.between)
        if state.inside:
            # The last forward ended in an exception.
            for layer in self._layers:
                layer.forget()
        state.epoch += 1
        if self.before:
            self.before = {}
        state.inside = True
        # A step is a step also when no layer can be recorded: its loss and the gradients of its parameters are still seen.
        state.recorded = True
        mode = MODES[model.training][grad]
        if self._keep:
            self.last[mode] = kept = ForwardInputs(args, kwargs, rng_snapshot(), _autocast(args, kwargs), mode)
            if grad and len(self.calls) < MOST:
                self.calls.append(kept)
        if self.watching is not None:
            self.watching.forward_begins(args, kwargs)
        if grad:
            self.forwards += 1
            if state.light and (not self.ways.around or self._norms.wanted):
                self._look_around(model, args, kwargs)
        if state.full and self._full_step != state.step:
            self._full_step = state.step
            self._measure(model, mode, args, kwargs)
        if state.formats is not None and state.formats.busy:
            state.formats.ended()
        if grad and model.training and state.formats is not None and state.step >= state.formats.next:
            state.formats.begin(state.step)

    def _after(self, grad: bool, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        state = self._state
        if graph_task() != -1:
            return
        state.inside = False
        if not (model.training and grad) or (self.forwards > 1 and not state.backward):
            self._look_at_evaluation(MODES[model.training][grad], output)
        if state.full and grad and model.training and not transforms():
            self._look_for_nothing(output)
        if self.watching is not None:
            self.watching.forward_ended(output, grad)
        if grad and not state.light and self._keep and len(self.skipped) < MOST:
            inputs = self.last[MODES[model.training][True]]
            self.skipped.append(keep_gradients(output, inputs, state.error_guard, state.gradient_arrived))
        if grad and state.light and self._keep:
            self._take_answer(output)
        layer_trace, state.layer_trace = state.layer_trace, None
        if layer_trace is not None and self._norms.watching:
            self._norms.end()
            state.norms = None
        if layer_trace and grad and not self.ways.around:
            first = next((tensor for _, tensor in tensors_in(output) if tensor.requires_grad), None)
            found = ways([*layer_trace, ("", first, None)] if first is not None else layer_trace)
            self.ways.around.update(found.around)
            self.ways.beside.update(found.beside)

    def _look_at_evaluation(self, mode: str, output: Any) -> None:
        """No loss and no gradient follows an evaluation, or a forward that a loop throws away, in which a NaN would show."""
        for tensor in () if transforms() else [t for _, t in tensors_in(output)] or answers_in(output):
            if not tensor.is_floating_point():
                continue
            bad = stored(tensor.detach()).isnan().any()
            if tensor.device.type != "cpu":
                self.evaluated = bad if self.evaluated is None else self.evaluated.to(bad.device) | bad
            elif self.bad_evaluation is None and bad:
                self.bad_evaluation = self.last.get(mode, ForwardInputs(mode=mode))

    def _look_for_nothing(self, output: Any) -> None:
        """A loss that leaves a tensor of the output out does not show what became of it."""
        made = [stored(t.detach()) for t in answers_in(output) if t.is_floating_point() or t.is_complex()]
        found = [t.isnan().all() for t in made if t.numel()]
        if found:
            self.nothing = torch.stack([one.to(found[0].device) for one in found]).any()

    def _take_answer(self, output: Any) -> None:
        """Keep what the first forward of a step returned, in the first steps and where its inputs are kept."""
        state, kept = self._state, None if self.kept is None else self.kept.answer
        if state.answer is not None and state.answer.step == state.step:
            return
        if kept is not None and kept.step == state.step:
            state.answer = kept
        elif state.step < OPENING and not transforms():
            state.answer = Answer(state.step)
        else:
            return
        state.answer.take(output, next(iter(self.last.values())), state.error_guard)

    def _look_around(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have the layers say what goes in and what comes out, to find what stands beside and around them."""
        state = self._state
        if state.layer_trace is None:
            state.layer_trace = []
        if self._norms.wanted:
            self._norms.begin(model, args, kwargs, state.error_guard)
            state.norms = self._norms if self._norms.watching else None

    def _measure(self, model: nn.Module, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = self._state
        state.ran_with = {name: id(parameter) for name, parameter in model.named_parameters()}
        if transforms():
            left_out(
                "a forward within a torch.func transform was not looked at closely: its tensors have no values yet"
            )
            return
        if self._keep and mode.startswith("train"):
            self.kept = self._copy_of(mode, args, kwargs)
        state.batch = next(iter(batch_vectors(unwrap(model)[0], args, kwargs)), None)
        found = [] if changes_input(model) else tensors_in([*args, kwargs])
        given = (t for _, t in found if t.dim() == 2 and t.is_floating_point())
        x = next((t for t in given if t.layout is torch.strided), None)  # A sparse matrix may well be the adjacency.
        if x is not None:
            batch = state.batch if state.batch is not None and len(state.batch) == len(x) else None
            state.queue("", mode, 0, node_measures(x.detach(), batch))
            if batch is not None:
                state.queue("", mode, 0, graph_measures(batch))

    def _copy_of(self, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardInputs | None:
        if bytes_of(held_tensors([args, kwargs])) > LARGEST_KEPT:
            return None
        try:
            own = copied(args), copied(kwargs)
        except UsageError:
            return None  # The survey of this step, which asks for the same copy, says why there is none.
        return self.last[mode]._replace(args=own[0], kwargs=own[1], answer=Answer(self._state.step))


def _autocast(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Autocast:
    if not autocasts():
        return NO_AUTOCAST
    first = args[0] if args else next(iter(kwargs.values()), None)
    device = first.device.type if isinstance(first, Tensor) else "cpu"
    enabled = torch.is_autocast_enabled(device)
    return Autocast(device, torch.get_autocast_dtype(device), True) if enabled else NO_AUTOCAST
