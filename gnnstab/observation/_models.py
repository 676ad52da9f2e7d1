"""A model in memory → signals: from its weights and settings alone, and measured on a batch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.errors import UsageError
from gnnstab.observation._references import resolve
from gnnstab.observation._request import Live, Observed, Request
from gnnstab.records import Signal, Signals, Target
from gnnstab.records.vocabulary import NOT_SEEN, PLACE_NOT_HELD, WEIGHT_RMS
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.signals import from_trace, join

if TYPE_CHECKING:
    from torch import nn


def static_signals(model: nn.Module, *, optimizer: Any = None, activation: str | None = None) -> Signals:
    """What weights, settings and the optimizer's state alone say."""
    from gnnstab.checkpoint import recover_model
    from gnnstab.probe.replaying.outside import keep_around
    from gnnstab.randomness import given_back
    from gnnstab.signals.weights import from_checkpoint

    with given_back():  # A weight that a parametrisation computes is computed by code of the user's.
        keep_around(model)
        found = recover_model(model, optimizer=optimizer, activation=activation)
    return from_checkpoint(found)


def measured_signals(model: nn.Module, batch: Any, *, loss: Any = None, precision: str = "fp32") -> Signals:
    """What the recorder sees in one forward and backward of every batch, without what the weights alone say."""
    from gnnstab.probe.measure import measure

    with measure(model, batch, loss=loss, precision=precision) as trace:
        return from_trace(trace)


def model_signals(
    model: nn.Module,
    batch: Any,
    *,
    loss: Any = None,
    precision: str = "fp32",
    optimizer: Any = None,
    try_steps: bool = False,
    search: bool = True,
) -> Signals:
    """All signals of a model and a batch, with ``try_steps`` what real steps on a copy say of rate and eps, with ``search`` at which lower rate they go better; the model is left as it was."""
    static = static_signals(model, optimizer=optimizer)
    measured = measured_signals(model, batch, loss=loss, precision=precision)
    if try_steps:
        from gnnstab.probe.optimizer.optimizer_steps import with_trial_steps

        measured = with_trial_steps(measured, model, batch, loss, optimizer, precision, alone=True, search=search)
    return _scale_tried(join(measured, static), model, batch, loss, optimizer if try_steps else None, precision)


def _scale_tried(
    signals: Signals,
    model: nn.Module,
    batch: Any,
    loss: Any,
    optimizer: Any,
    precision: str,
    lr: float = 1e-3,
    clip: float | None = None,
) -> Signals:
    """The signals with what steps on copies say of inputs that are badly scaled: without the user's own, of those that saturate nothing."""
    rule = FeatureScale()
    chosen = rule.unexplained(signals) if loss is None or optimizer is None else rule.beyond(signals)
    if not chosen:
        return signals
    from gnnstab.probe.optimizer.optimizer_steps import with_input_trial

    return with_input_trial(signals, chosen, model, batch, loss, optimizer, lr, precision, clip)


def observe_model(model: Any, request: Request) -> Observed:
    """Raises `UsageError` when ``model`` is no module."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UsageError(f"cannot diagnose a {type(model).__name__}; pass a path or a torch.nn.Module")
    static = static_signals(model, optimizer=request.optimizer, activation=request.activation)
    groups = () if request.optimizer is None else request.optimizer.param_groups
    if request.optimizer is not None:
        told: dict[str, Any] = {"optimizer": type(request.optimizer).__name__}
        if all(group.get("lr") == 0 for group in groups):
            # As before a warm-up, behind the end of a schedule, or where the loop itself sets it: no step says anything.
            told[NOT_SEEN] = ["updates, since the learning rate is 0 now"]
        static = replace(static, context={**static.context, **told})
    return on_batch(Observed(Target(kind="model", path=type(model).__name__), static), model, request, groups)


def on_batch(seen: Observed, model: nn.Module, request: Request, groups: Sequence[Mapping[str, Any]] = ()) -> Observed:
    """``seen`` joined with what a forward and backward of the request's batch shows, where it has one.

    ``groups`` are the settings of the optimizer that moved the model.
    """
    if request.batch is None:
        return seen
    from gnnstab.probe.optimizer.optimizer_steps import with_trial_steps
    from gnnstab.probe.replaying.known import asked_once

    training: dict[str, Any] = {**adam_settings(groups)}
    if request.optimizer is not None and any(float(group.get("lr") or 0.0) > 0 for group in groups):
        training["optimizer"] = request.optimizer
    live = at_hand(model, request, training)
    batch, loss = live.batch, live.loss
    request.progress("running forward and backward")
    target = replace(seen.target, notes=(*seen.target.notes, *_kept(model)))
    with asked_once():
        dynamic = measured_signals(model, batch, loss=loss, precision=request.precision)
        dynamic = with_trial_steps(dynamic, model, batch, loss, request.optimizer, request.precision, request.clip)
        if request.optimizer is not None:
            dynamic = replace(dynamic, values=(*dynamic.values, *_not_held(model, request.optimizer.param_groups)))
        rate = live.training.get("lr", 1e-3)
        joined = join(dynamic, seen.signals)
        joined = _scale_tried(joined, model, batch, loss, request.optimizer, request.precision, rate, request.clip)
    if all(s.detail.get("plain") for s in joined.find(WEIGHT_RMS)):
        # No update was looked at, as where the loss is not finite: what the weights hold may be why.
        sizes = _sizes(model)
        told = {s.detail["parameter"] for s in sizes}
        others = (s for s in joined.values if not (s.detail.get("plain") and s.detail["parameter"] in told))
        joined = replace(joined, values=(*others, *sizes))
    return replace(seen, target=target, signals=joined, live=live)


def _sizes(model: nn.Module) -> list[Signal]:
    """The RMS of every parameter that is finite."""
    from gnnstab.layers.lazy import unwritten

    without = unwritten(model)
    known = {n: p.detach() for n, p in model.named_parameters() if n not in without and p.is_floating_point()}
    found = {name: float(p.double().square().mean().sqrt()) for name, p in known.items() if p.numel()}
    return [
        Signal(WEIGHT_RMS, size, name.rpartition(".")[0] or None, source="batch", detail={"parameter": name})
        for name, size in found.items()
        if math.isfinite(size)
    ]


def at_hand(model: nn.Module, request: Request, training: Mapping[str, Any]) -> Live:
    """The model with the batch and the loss of the request, read where they are names."""
    from torch import nn

    from gnnstab.probe.batches.arguments import load_batch
    from gnnstab.probe.batches.data import taken
    from gnnstab.probe.batches.loss import of_output_and_batch

    batch, loss = request.batch, request.loss
    if isinstance(batch, (str, os.PathLike)):
        batch = load_batch(os.fspath(batch), unsafe=request.unsafe)
    if isinstance(loss, str):
        loss = resolve(loss)
    named = resolve(request.model) if isinstance(request.model, str) else request.model
    factory = None if isinstance(named, nn.Module) else named
    return Live(model, taken(batch, model), None if loss is None else of_output_and_batch(loss), training, factory)


def _kept(model: nn.Module) -> list[str]:
    from gnnstab.probe.replaying.replica import left_by_forward

    kept = list(dict.fromkeys(name for name, tensor in left_by_forward(model) if tensor.grad_fn is not None))
    if not kept:
        return []
    what = f"keeps {', '.join(kept[:3])} from an earlier forward, with the graph behind it"
    return [
        f"the model {what}: copies hold the numbers alone, and the memory of that forward is not freed; detach() frees it"
    ]


def _not_held(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> tuple[Signal, ...]:
    from gnnstab.probe.places import not_held

    found = not_held(model, groups)
    return (Signal(PLACE_NOT_HELD, float(found["count"]), detail=found),) if found else ()


def adam_settings(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """``lr`` and ``eps`` of groups of the Adam family; empty where there is none, or where they differ."""
    found = {(g.get("lr"), g.get("eps")) for g in groups if g.get("betas") is not None}
    if len(found) != 1:
        return {}
    lr, eps = found.pop()
    numbers = {"lr": lr, "eps": eps}
    # A schedule that has come to its end leaves a rate of 0, with which nothing can be trained.
    return {k: float(v) for k, v in numbers.items() if isinstance(v, (int, float)) and (k == "eps" or v > 0)}
