"""A bundle of the monitor replayed: the weights, inputs, mode, number format and random numbers of the run that failed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import CheckpointMismatch, UsageError
from gnnstab.probe.replaying.bundle import Bundle
from gnnstab.probe.replaying.replica import device_of, tensors_in, unwrap
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Event
from gnnstab.verification.replay import FIRST_AID, Replay, replay_forward

NEEDS_MODEL = (
    "A bundle holds numbers and no code: pass --model pkg.mod:factory, the class that was trained, to run the forward "
    "again and to try fixes."
)


@keeps_random_state
def replay_bundle(bundle: Bundle, model: nn.Module, fixes: Any = FIRST_AID) -> Replay:
    """Run the forward of a bundle again on ``model`` with the bundle's weights, and once more with every fix.

    ``model`` is the caller's to give away: it gets the weights, their number formats and the mode of the run.

    Raises:
        CheckpointMismatch: The bundle belongs to another model.
        UsageError: The forward fails for another reason than a non-finite value, or a fix says nothing here.
    """
    inner, _ = unwrap(model)
    _fill(inner, bundle.weights)
    given, device = bundle.inputs, device_of(inner).type
    inner.train(given.mode.startswith("train"))
    rng = given.rng if torch.cuda.is_available() else {**given.rng, "cuda": {}}
    inputs = given._replace(rng=rng, autocast=given.autocast._replace(device_type=device))
    try:
        found = replay_forward(inner, inputs, fixes)
    except UsageError as error:
        missing = "".join(f"; the bundle lacks {text}" for text in bundle.left_out)
        raise UsageError(f"{error}{missing}") from error
    recorded = recorded_event(bundle)
    return replace(
        found, recorded=recorded, note=" ".join([_agreement(recorded, found.event), *_other(bundle, device)])
    )


def seen_in(bundle: Bundle) -> Replay:
    """What a bundle says by itself, without the model: the recorded event, and what of its numbers is not finite."""
    bad = [f"weight {name}" for name, value in bundle.weights.items() if _broken(value)]
    arguments = {str(i): value for i, value in enumerate(bundle.inputs.args)} | bundle.inputs.kwargs
    bad += [f"argument {name}" for name, value in tensors_in(arguments) if _broken(value)]
    said = (
        f"Not finite in the bundle: {', '.join(bad)}." if bad else "All weights and arguments in the bundle are finite."
    )
    return Replay(None, (), (), recorded_event(bundle), f"{said} {NEEDS_MODEL}")


def recorded_event(bundle: Bundle) -> Event:
    """The event as the monitor wrote it; what is not of the right type is left out, for a bundle may come from anyone."""
    about = bundle.event
    step, call, layer, stage = (about.get(key) for key in ("step", "call", "layer", "stage"))
    return Event(
        step if isinstance(step, int) else 0,
        "non-finite",
        layer if isinstance(layer, str) else None,
        bundle.inputs.mode,
        call if isinstance(call, int) else 0,
        stage if isinstance(stage, str) else None,
        message=str(about.get("message", "")),
    )


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Weights and buffers of the bundle into the model, in the number format in which they were saved."""
    own = {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    apart = sorted(own.keys() ^ weights.keys())
    apart += [
        name
        for name in own.keys() & weights.keys()
        if (own[name].shape, own[name].layout) != (weights[name].shape, weights[name].layout)
    ]
    if apart:
        shown = ", ".join(apart[:3]) + (" …" if len(apart) > 3 else "")
        raise CheckpointMismatch(
            f"the bundle belongs to another model than {type(model).__name__}: {len(apart)} of its tensors differ ({shown})"
        )
    for name, value in own.items():
        value.data = weights[name].to(value.device, copy=True)


def _agreement(recorded: Event, event: Event | None) -> str:
    """How the replay compares with what the monitor saw."""
    there = f"{recorded.layer or 'the model'}, stage {recorded.stage or 'unknown'}"
    if event is not None:
        same = (event.layer, event.stage) == (recorded.layer, recorded.stage)
        return f"The monitor saw the same at step {recorded.step}." if same else f"The monitor blamed {there}."
    if recorded.stage in ("gradient", "loss"):
        return (
            f"The forward is finite, as it was in the run: the monitor saw the first non-finite value at {there}, and a bundle "
            "holds no loss. Run gnnstab diagnose with --model, --batch and --loss to see the backward."
        )
    return f"The forward is finite here, and the monitor saw {there}: this machine, or the model's code, is not that of the run."


def _other(bundle: Bundle, device: str) -> list[str]:
    """What is not as it was in the run."""
    said = [f"Left out of the bundle: {text}." for text in bundle.left_out]
    if bundle.inputs.autocast.device_type != device:
        said.append(f"Recorded on {bundle.inputs.autocast.device_type}, replayed on {device}: rounding differs.")
    return said


def _broken(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())
