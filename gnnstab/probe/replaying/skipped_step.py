"""A step that was left out did not end well: it is run again, on a copy, with everything recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.attaching.hooks import Hook, ignore
from gnnstab.probe.buffering.step_writer import StepRows, Writer
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.reach import held_tensors
from gnnstab.probe.replaying.replica import copied, eager, forked_rng, replica, tensors_in
from gnnstab.records import LayerFacts, SeriesKey

if TYPE_CHECKING:
    from gnnstab.probe.attaching.forward_tracker import ForwardInputs
    from gnnstab.probe.error_guard import ErrorGuard
    from gnnstab.probe.recorder import Recorder

MOST = 8
"""Forward passes of one step that are kept; a step of more is always recorded."""


class SkippedForward(NamedTuple):
    """One forward with gradients that was left out: what went in, and the gradients that came back to its outputs."""

    inputs: ForwardInputs
    gradients: list[Tensor | None]
    """One per output with a history, in the order of `histories`; filled by the backward."""


class OutputGradient:
    """The body of a hook on the node of one output: it remembers the gradient until the step ends."""

    __slots__ = ("_arrived", "_kept", "_position", "_which")

    def __init__(self, kept: list[Tensor | None], position: int, which: int, arrived: Callable[[], object]) -> None:
        self._kept = kept
        self._position = position
        self._which = which
        self._arrived = arrived

    def __call__(self, grad: bool, gradients: tuple[Tensor | None, ...]) -> None:
        """Remember; two backward passes through one output add up."""
        gradient, before = gradients[self._which], self._kept[self._position]
        self._kept[self._position] = gradient if before is None or gradient is None else before + gradient
        self._arrived()


def histories(output: Any) -> list[Tensor]:
    """The tensors in what a model returned that a backward can come through."""
    if isinstance(output, Tensor):
        return [output] if output.grad_fn is not None else []
    return [tensor for _, tensor in tensors_in(output) if tensor.grad_fn is not None]


def answers_in(output: Any) -> list[Tensor]:
    """Every tensor in what a model returned, whatever holds it; a module that hangs there, as the model itself may, is no answer."""
    named = [tensor for _, tensor in tensors_in(output)]
    return [*named, *(t for t in held_tensors(output, (nn.Module,)) if all(t is not one for one in named))]


def keep_gradients(
    output: Any, inputs: ForwardInputs, error_guard: ErrorGuard, arrived: Callable[[], object] = ignore
) -> SkippedForward:
    """Remember the gradients of a forward that has just returned ``output``; ``arrived`` is called with each."""
    outputs = histories(output)
    kept = SkippedForward(inputs, [None] * len(outputs))
    for position, tensor in enumerate(outputs):
        assert tensor.grad_fn is not None
        body = OutputGradient(kept.gradients, position, tensor.output_nr, arrived)
        tensor.grad_fn.register_prehook(Hook("the gradient of the output", body, error_guard))
    return kept


def run_again(
    model: nn.Module,
    kept: SkippedForward,
    step: int,
    writer: Writer,
    recorder: Callable[[nn.Module, Writer], Recorder],
) -> StepRows:
    """Forward and backward on a copy, the rows under the number of ``step`` in the trace; returns them.

    Generators, autocast and inputs are as they were; the model, its gradients and the generators stay as they are.

    Raises:
        UsageError: The model cannot be copied, or its forward or backward fails on the copy.
    """
    return _again(replica(model), kept, step, _Into(writer), recorder)[0]


def _again(
    twin: nn.Module,
    kept: SkippedForward,
    step: int,
    writer: Writer,
    recorder: Callable[[nn.Module, Writer], Recorder],
) -> tuple[StepRows, Any]:
    inner = recorder(twin, writer)
    inner.state.step = step
    inputs = kept.inputs
    with inner:
        try:
            with forked_rng(inputs.rng):
                with torch.enable_grad(), inputs.autocast.context():
                    output = eager(inner.model)(*copied(tuple(inputs.args)), **copied(dict(inputs.kwargs)))
                if kept.gradients:
                    _backward(histories(output), kept.gradients)
        except Exception as error:
            let_through(error)
            raise UsageError(f"the step could not be run again: {type(error).__name__}: {error}") from error
    return inner.sent, output


def last_look(
    model: nn.Module,
    inputs: ForwardInputs,
    step: int,
    writer: Writer,
    recorder: Callable[[nn.Module, Writer], Recorder],
    late: Collection[str] = (),
) -> Any:
    """Measure in full, on a copy, what a forward of ``inputs`` is now that ``step`` is over, and return its output; None where it fails.

    The rows that the light tier has of ``step`` stay as they are. Of the layers ``late``, which the run does not know, it tells what they are.
    """
    twin = replica(model)
    try:
        if twin.training != (training := inputs.mode.startswith("train")):  # A validation came last.
            in_mode(twin, training)
        return _again(twin, SkippedForward(inputs, []), step, _OnlyMeasures(writer, late), recorder)[1]
    except UsageError:
        return None


def look_again(
    model: nn.Module,
    forwards: Sequence[SkippedForward],
    step: int,
    writer: Writer,
    recorder: Callable[[nn.Module, Writer], Recorder],
) -> StepRows | None:
    """The rows of the last forward of a finite step that was left out, run again; None where it cannot be."""
    try:
        return run_again(model, forwards[-1], step, writer, recorder) if forwards else None
    except UsageError:
        return None


def _backward(outputs: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> None:
    pairs = [(output, gradient) for output, gradient in zip(outputs, gradients, strict=True) if gradient is not None]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [gradient.detach() for _, gradient in pairs])


class _Into:
    """Takes only numbers: what else there is to say of the step, the recorder of the run says."""

    def __init__(self, writer: Writer) -> None:
        self.series: Callable[[SeriesKey], int] = writer.series
        self.sites: Callable[[int, Any, Any], None] = writer.sites
        self.measures: Callable[[Any], None] = writer.measures

    meta = layer = blind = step = event = staticmethod(ignore)


class _OnlyMeasures(_Into):
    """Takes the numbers of the full tier alone, and the facts of the layers ``late``."""

    def __init__(self, writer: Writer, late: Collection[str]) -> None:
        super().__init__(writer)
        self.sites = ignore
        self._writer, self._late = writer, late

    def layer(self, facts: LayerFacts) -> None:
        """Tell what a layer is."""
        if facts.name in self._late:
            self._writer.layer(facts)
