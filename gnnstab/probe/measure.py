"""One look at a model: forward and backward of a batch on a copy, through the recorder that the monitor uses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.attaching.norms import graphs_in
from gnnstab.probe.batches.arguments import Arguments, as_arguments
from gnnstab.probe.batches.chosen import chosen
from gnnstab.probe.batches.data import taken
from gnnstab.probe.batches.loss import called
from gnnstab.probe.beside_the_loss import beside_the_loss
from gnnstab.probe.operations.repeat import Objective
from gnnstab.probe.places import Place, survey, to_json
from gnnstab.probe.pooling import sums_watched
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.replaying.evaluating import evaluating, in_mode
from gnnstab.probe.replaying.marks import marked_targets
from gnnstab.probe.replaying.read_out import read_out as read_out
from gnnstab.probe.replaying.replica import (
    Autocast,
    ForwardInputs,
    device_of,
    eager,
    on_device,
    tracked,
    whole_copy,
)
from gnnstab.probe.replaying.zero_output import loss_over_zero
from gnnstab.probe.statistics.numbers import Measured
from gnnstab.probe.unit_input import AtUnitInput, at_unit_input
from gnnstab.randomness import same_random_state
from gnnstab.records.vocabulary import LOSS_OVER_ZERO, NOT_SEEN, PLACE_CLAMPED_SHARE, PLACE_GRADIENT_STOPS
from gnnstab.trace import Trace, TraceWriter

OBJECTIVE = "loss: a fixed random linear read-out of the output, since none was given"

NEEDS_COPY = ", and gnnstab runs nothing on your own object; wrap the run in gnnstab.Monitor instead"

Loss = Callable[[Any, Any], Tensor]


def measure(model: nn.Module, batch: Any, *, loss: Loss | None = None, precision: str = "fp32") -> Trace:
    """Record one forward and one backward of every batch, everything at full resolution.

    The model is copied and the copy runs in evaluation mode, so that dropout does not blur the forward signals; the
    user's model, its gradients, its mode and the random state stay as they are.

    Args:
        model: Any module.
        batch: What the user calls a batch, see `gnnstab.probe.batches.arguments.as_arguments`; each one is a step of the trace.
        loss: ``loss(output, batch)``; a fixed random linear read-out of the output when omitted.
        precision: ``fp16`` and ``bf16`` run the forward under autocast.

    Raises:
        UsageError: The model cannot be copied, or its forward or the loss fails on the batch.
    """
    meta = {"source": "batch", "precision": precision, "loss_given": str(loss is not None).lower()}
    if loss is None:
        meta["assumptions"] = OBJECTIVE
    with TraceWriter(None, meta=meta) as writer:  # Its thread ends also where the model fails.
        twin = evaluating(whole_copy(model, NEEDS_COPY))
        device = device_of(twin)
        recorder = Recorder(twin, writer, full_every=1, norm_forwards=math.inf)
        batches, position, unseen = chosen(list(_batches(batch, model)))
        closest = batches[position]
        with same_random_state(), torch.enable_grad():
            _look_at_places(twin, closest, device, loss, precision, writer)
        with same_random_state():
            unit = _at_unit_input(twin, closest[0], device, precision)
        with same_random_state(), torch.enable_grad(), recorder:
            for layer in recorder.layers:
                if layer.name in unit:
                    layer.maps = unit[layer.name].maps  # type: ignore[attr-defined]
                    recorder.state.queue(layer.name, "eval-grad", 0, unit[layer.name].numbers)
            moves = False
            for arguments, original in batches:
                # The batch may know more graphs than the forward takes: just then its normalisations mix them.
                recorder.norms.graphs = graphs_in(original)
                recorder.explainer.batch = original
                recorder.explainer.objective = _repeated(original, loss, device)
                _one(twin, tracked(on_device(arguments, device)), original, loss, precision, recorder)
                moves = moves or _moves(twin)
        unseen += [] if moves else ["gradients, since the loss moves no parameter"]
        if not recorder.detector.met:
            with same_random_state():
                args, kwargs = on_device(closest[0], device)
                cast = Autocast.of(twin, precision)
                event, more = beside_the_loss(twin, ForwardInputs(args, kwargs, autocast=cast, mode="train-nograd"))
            unseen += more
            if event is not None:
                writer.event(event)
        writer.meta(NOT_SEEN, json.dumps(unseen))
        return _handed_over(writer)


def _moves(model: nn.Module) -> bool:
    """True where the latest backward left a gradient other than 0, or where there is no parameter."""
    parameters = list(model.parameters())
    gradients = (p.grad for p in parameters if p.grad is not None)
    return not parameters or any(g.layout is not torch.strided or bool(g.any()) for g in gradients)


def _look_at_places(
    twin: nn.Module,
    first: tuple[Arguments, Any],
    device: torch.device,
    loss: Loss | None,
    precision: str,
    writer: TraceWriter,
) -> None:
    """Survey the first batch; where the forward or the loss fails, the recording below says so."""
    (args, kwargs), original = on_device(first[0], device), first[1]

    def look() -> list[Place]:
        return survey(
            twin,
            args,
            kwargs,
            batch=original,
            objective=lambda output: _objective(output, original, loss),
            cast=Autocast.of(twin, precision).context(),
        )

    try:
        found = look()
    except Exception as error:
        let_through(error)
        writer.meta("places_failed", f"{type(error).__name__}: {error}")
        return
    if any(place.signal in _BLOCKING and place.value > 0 for place in found):
        found = _as_in_training(twin, found, look)
    writer.meta("places", to_json(found))


_BLOCKING = (PLACE_CLAMPED_SHARE, PLACE_GRADIENT_STOPS)
"""What keeps gradients back: it counts where the model trains."""


def _as_in_training(twin: nn.Module, found: list[Place], look: Callable[[], list[Place]]) -> list[Place]:
    """The places, where that of `_BLOCKING` which a training forward lacks is marked as of ``evaluation`` alone."""
    modes = {module: module.training for module in twin.modules()}
    in_mode(twin)
    try:
        training = {(place.signal, place.name) for place in look()}
    except Exception as error:  # As of a BatchNorm over a single row.
        let_through(error)
        return found
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [
        place._replace(detail={**place.detail, "evaluation": True})
        if place.signal in _BLOCKING and (place.signal, place.name) not in training
        else place
        for place in found
    ]


def _at_unit_input(
    twin: nn.Module, arguments: Arguments, device: torch.device, precision: str
) -> dict[str, AtUnitInput]:
    """Of the layers without an adapter; where the forward fails, the recording says so."""
    try:
        return at_unit_input(twin, on_device(arguments, device), Autocast.of(twin, precision).context())
    except Exception as error:
        let_through(error)
        return {}


def measure_layers(layers: nn.Module, batches: Mapping[int, dict[str, Any]]) -> Trace:
    """Record layers on synthetic graphs, one step per in-degree; ``batches`` maps in-degree → keyword arguments."""
    with TraceWriter(None, meta={"source": "synthetic", "precision": "fp32"}) as writer:
        with torch.no_grad(), Recorder(layers, writer, full_every=1) as recorder:
            for batch in batches.values():
                layers(**batch)
                recorder.end_step()
        return _handed_over(writer)


def _batches(batch: Any, model: nn.Module) -> Iterator[tuple[Arguments, Any]]:
    """Arguments of every forward, and the batch as the loss wants to see it."""
    batch = taken(batch, model)
    found = as_arguments(batch, model)
    if len(found) == 1:
        yield found[0], batch
    else:
        yield from zip(found, batch, strict=True)


def _one(
    model: nn.Module, arguments: Arguments, batch: Any, loss: Loss | None, precision: str, recorder: Recorder
) -> None:
    args, kwargs = arguments
    model.zero_grad(set_to_none=True)
    try:
        with Autocast.of(model, precision).context(), sums_watched() as sums:
            output = eager(model)(*args, **kwargs)
    except Exception as error:
        let_through(error)
        raise UsageError(
            f"the forward of {type(model).__name__} failed on the batch ({_described(arguments)}): {type(error).__name__}: {error}"
        ) from error
    objective = _objective(output, batch, loss)
    if objective.requires_grad:
        objective.backward()  # type: ignore[no-untyped-call]
        recorder.state.backward = True  # Also of a model without a layer that is recorded.
    numbers = {
        LOSS_OVER_ZERO: loss_over_zero(output, float(objective.detach()), batch, loss),
    }
    known = {name: Measured(torch.tensor(value)) for name, value in numbers.items() if not math.isnan(value)}
    mode = "eval-grad" if objective.requires_grad else "eval"
    recorder.state.queue("", mode, 0, known)
    recorder.writer.measures(sums.measures(recorder.step, mode))
    answer = recorder.state.answer
    if answer is not None and answer.output is not None and answer.gradient is not None:
        value = float(objective.detach())
        recorder.writer.measures(marked_targets(answer.output, answer.gradient, value, recorder.step, "eval-grad"))
    recorder.loss(objective)
    recorder.end_step()


def _repeated(batch: Any, loss: Loss | None, device: torch.device) -> Objective:
    """The objective of one batch, as `_one` computes it: outside of autocast."""

    def objective(output: Any, args: tuple[Any, ...], kwargs: dict[str, Any], watch: Any) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            return _objective(output, batch, loss)

    return objective


def _objective(output: Any, batch: Any, loss: Loss | None) -> Tensor:
    if loss is None:
        return read_out(output)
    value = called(loss, output, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UsageError(f"the loss returned {type(value).__name__}, not a scalar tensor")
    return value.reshape(())


def _described(arguments: Arguments) -> str:
    args, kwargs = arguments
    parts = [_shape(a) for a in args] + [f"{k}={_shape(v)}" for k, v in kwargs.items()]
    return ", ".join(parts)[:300]


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _handed_over(writer: TraceWriter) -> Trace:
    writer.close()
    return writer.read()
