"""From the numbers of one step to the event that explains its first non-finite value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gnnstab.errors import UsageError
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.buffering.step_writer import StepRows
from gnnstab.probe.replaying.provenance import locate_non_finite
from gnnstab.records import Event, SeriesKey

_ORDER = ("score", "attention", "aggregate", "gate", "output")
_GRADIENTS = ("grad_output", "grad_input")


@dataclass(frozen=True, slots=True)
class StepView:
    """What one step showed, by series."""

    step: int
    seen: dict[SeriesKey, bool]
    """Activation and gradient sites → finite."""

    parameters: dict[str, bool]
    """Parameter → whether its gradient is finite."""

    layers: Sequence[str]
    """Layers in the order of their first calls."""

    @classmethod
    def of(cls, step: int, sent: StepRows, layers: Sequence[str]) -> StepView:
        """Look at what was handed to the trace."""
        finite = (sent.rows[:, 4] == 0).tolist()
        pairs = list(zip(sent.layout.keys, finite, strict=True))
        seen = {key: ok for key, ok in pairs if key.site != "weight_grad"}
        return cls(step, seen, {key.layer: ok for key, ok in pairs if key.site == "weight_grad"}, layers)

    def forward_bad(self) -> list[SeriesKey]:
        """Activation sites that were not finite."""
        return [key for key, ok in self.seen.items() if not ok and key.site not in _GRADIENTS]

    def gradients_bad(self) -> bool:
        """True when the update is about to be made with a gradient that is not finite.

        Where gradients of activations were not finite and those of all parameters are, the bad ones were dropped before
        the update, as a GradScaler does.
        """
        if self.parameters:
            return not all(self.parameters.values())
        return any(not ok for key, ok in self.seen.items() if key.site in _GRADIENTS)


def forward_event(
    view: StepView,
    model: nn.Module,
    inputs: Mapping[str, ForwardInputs],
    weights: Sequence[str],
    lost: str = "",
    from_start: Sequence[str] = (),
) -> Event:
    """The first non-finite value of a forward pass.

    The forward is run again on a copy. Where that is not possible, or shows nothing, what was recorded decides. ``lost`` says
    why nothing can be run again, whatever was kept; ``from_start`` are those of the bad ``weights`` that no update made so.
    """
    bad = view.forward_bad()
    if weights and from_start:
        return weight_event(view.step, from_start, sum(1 for _ in model.parameters()), from_start=True)
    if lost:
        return _recorded(view, bad, lost, weights_finite=None)
    if weights:
        return weight_event(view.step, weights, sum(1 for _ in model.parameters()))
    for mode in dict.fromkeys(key.mode for key in bad):
        if mode in inputs:
            found = located(view.step, model, inputs[mode])
            if isinstance(found, Event):
                return found
            note = found
            break
    else:
        note = "the inputs of that forward were not kept"
    return _recorded(view, bad, note)


def left_out_event(step: int, bad: Sequence[str], note: str) -> Event:
    """A gradient that is not finite in a step that was left out and shows nothing when it is run again."""
    return Event(
        step,
        "non-finite",
        layer=bad[0].rpartition(".")[0],
        mode="train",
        stage="gradient",
        message=f"the gradient of {bad[0]} is non-finite; the step itself was not recorded, and {note}",
        detail={"non_finite_gradients": list(bad[:16]), "replayed": False, "note": note},
    )


def located(step: int, model: nn.Module, last: ForwardInputs) -> Event | str:
    """Where the first non-finite value of a forward is, or why that is not known."""
    try:
        found = locate_non_finite(model, last, step)
    except UsageError as error:
        return str(error)
    return found or "a second run of the step's last forward was finite"


def _recorded(view: StepView, bad: Sequence[SeriesKey], note: str, *, weights_finite: bool | None = True) -> Event:
    place = {name: i for i, name in enumerate(view.layers)}
    calls = sorted({(key.mode, key.call, place.get(key.layer, len(place)), key.layer) for key in bad})
    mode, call, _, layer = calls[0]
    here = [key.site for key in bad if (key.mode, key.call, key.layer) == (mode, call, layer)]
    came_in = "input" in here
    stage = "input" if came_in else min(here, key=_ORDER.index)
    what = f"came into {layer} with its input" if came_in else f"first appeared at the {stage} of {layer}"
    return Event(
        view.step,
        "non-finite",
        layer=layer,
        mode=mode,
        call=call,
        stage=stage,
        origin="came-in" if came_in else "made-here",
        message=f"a non-finite value {what} (read from the recorded extremes: {note})",
        detail={"weights_finite": weights_finite, "replayed": False, "note": note},
    )


def weight_event(step: int, weights: Sequence[str], parameters: int, *, from_start: bool = False) -> Event:
    """Weights that are not finite in ``step``, which nobody need have begun: ``parameters`` are all that there are."""
    first = weights[0]
    since = "the beginning of the run" if from_start else f"the update before step {step}"
    many = f"{len(weights)} parameters hold NaN or Inf since {since}, the first is {first}"
    return Event(
        step,
        "non-finite",
        layer=first.rpartition(".")[0],
        stage="weight",
        origin="came-in" if from_start else "made-here",
        message=many if len(weights) > 1 else f"{first} holds NaN or Inf since {since}",
        detail={
            "weights_finite": False,
            "from_start": from_start,
            "non_finite_parameters": list(weights[:16]),
            "bad_parameters": len(weights),
            "parameters": parameters,
        },
    )


def state_event(step: int, names: Sequence[str], layer: str | None) -> Event:
    """Tensors that a run leaves with NaN or Inf, and of which neither loss nor weights have shown anything."""
    some = f"1 tensor holds NaN or Inf at the end of the run ({names[0]})"
    if len(names) > 1:
        more = ", …" if len(names) > 3 else ""
        some = f"{len(names)} tensors hold NaN or Inf at the end of the run ({', '.join(names[:3])}{more})"
    return Event(step, "non-finite", layer=layer, stage="state", message=some, detail={"said": some})


def gradient_event(view: StepView) -> Event:
    """Where a gradient became non-finite although the forward pass was finite."""
    by_layer = {
        (key.layer, key.site): ok for key, ok in view.seen.items() if key.site in _GRADIENTS and key.mode == "train"
    }
    arrived_bad = ""
    for layer in reversed(view.layers):
        leaving, arriving = by_layer.get((layer, "grad_input"), True), by_layer.get((layer, "grad_output"), True)
        if not arriving and not arrived_bad:
            arrived_bad = layer
        if arriving and not leaving:
            return _gradient(view, layer, "made-here", f"the gradient became non-finite inside {layer}")
        if arrived_bad:
            break
    if arrived_bad:
        text = f"the gradient that reached {arrived_bad}, the last recorded layer of the backward pass, was already non-finite"
        return _gradient(view, arrived_bad, "came-in", text)
    bad = [name for name, ok in view.parameters.items() if not ok]
    layer = bad[0].rpartition(".")[0]
    return _gradient(
        view, layer, None, f"the gradient of {bad[0]} is non-finite, that of all recorded activations finite"
    )


def _gradient(view: StepView, layer: str, origin: str | None, text: str) -> Event:
    bad = [name for name, ok in view.parameters.items() if not ok]
    detail: dict[str, Any] = {"forward_finite": True, "non_finite_gradients": bad[:16]}
    return Event(view.step, "non-finite", layer, "train", stage="gradient", origin=origin, message=text, detail=detail)


def loss_event(step: int, loss: float) -> Event:
    """A loss that is not finite although everything before it was."""
    text = f"the loss is {loss} while all recorded activations are finite"
    detail = {"loss": str(loss)}
    return Event(step, "non-finite", mode="train", stage="loss", origin="made-here", message=text, detail=detail)


def evaluation_event(step: int, loss: float | None = None, mode: str = "eval") -> Event:
    """A validation loss that is not finite, or an output that holds NaN and that no backward follows, in a run that trained without either."""
    forward = "an evaluation" if mode.startswith("eval") else "a forward in training mode that no backward followed"
    said = f"the output of {forward} holds NaN" if loss is None else f"the validation loss is {loss}"
    stage, detail = ("output", {}) if loss is None else ("loss", {"loss": str(loss)})
    return Event(step, "non-finite", mode="eval", stage=stage, message=said, detail={"said": said, **detail})


def with_detail(event: Event, **more: Any) -> Event:
    """The event with more detail."""
    return replace(event, detail={**event.detail, **more})
