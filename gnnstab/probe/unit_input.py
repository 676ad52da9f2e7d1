"""Attention of a class that nobody described, called anew on a copy with an input of RMS 1: tells sharp weights from a large input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gnnstab.errors import let_through
from gnnstab.probe.attaching.discovery import find_layers
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.layers import DenseSoftmaxRecorder, EdgeSoftmaxRecorder
from gnnstab.probe.replaying.evaluating import evaluating
from gnnstab.probe.replaying.replica import eager, forked_rng, replica
from gnnstab.probe.state import State
from gnnstab.probe.statistics.attention import entropy_measures, score_measures
from gnnstab.probe.statistics.numbers import Measured
from gnnstab.records import Measure
from gnnstab.records.vocabulary import LOGIT_FROBENIUS, SCORE_WITHIN_STD

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Described = EdgeSoftmaxRecorder | DenseSoftmaxRecorder


class AtUnitInput(NamedTuple):
    """What one layer does at an input of RMS 1."""

    numbers: dict[str, Measured]
    """Entropy and one-hot share there, and the spread of the scores within a target."""

    maps: tuple[str, ...]
    """Parts of the layer that reach its output through the scores alone."""


def at_unit_input(model: nn.Module, arguments: Arguments, cast: AbstractContextManager[Any]) -> dict[str, AtUnitInput]:
    """Layer → what it does, of every layer without an adapter that attends in a forward of ``model``, a copy in evaluation mode.

    Its first call counts. A layer that cannot be called so is left out; what the model itself raises is raised.
    """
    layers = [one for one in find_layers(model, State()) if isinstance(one, Described)]
    calls: dict[str, Arguments] = {}
    if not layers:
        return {}
    for layer in layers:
        layer.record = partial(_keep, layer, calls)  # type: ignore[method-assign]
        layer.attach()
    try:
        with torch.no_grad(), cast:
            eager(model)(*arguments[0], **arguments[1])
    finally:
        for layer in layers:
            layer.detach()
    known = {layer.name: _again(layer, calls[layer.name]) for layer in layers if layer.name in calls}
    return {name: found for name, found in known.items() if found is not None}


def unit_input_rows(model: nn.Module, inputs: ForwardInputs, step: int) -> list[Measure]:
    """What `at_unit_input` shows on a copy of the model of a run and the inputs of a forward, as rows for the trace.

    Raises:
        UsageError: The model cannot be copied.
    """
    twin = evaluating(replica(model))
    try:
        with forked_rng(inputs.rng):
            found = at_unit_input(twin, (inputs.args, inputs.kwargs), inputs.autocast.context())
    except Exception as error:  # Not every forward that trains runs in evaluation mode.
        let_through(error)
        return []
    rows = []
    for layer, shown in found.items():
        for name, measured in shown.numbers.items():
            heads = [] if measured.per_head is None else measured.per_head.tolist()
            total = [] if measured.total is None else [(-1, float(measured.total))]
            rows += [Measure(step, layer, inputs.mode, 0, name, head, v) for head, v in (*total, *enumerate(heads))]
    return rows


def _keep(layer: Described, calls: dict[str, Arguments], *_: Any) -> None:
    calls.setdefault(layer.name, layer.given)
    layer.forget()


def _again(layer: Described, arguments: Arguments) -> AtUnitInput | None:
    found: list[AtUnitInput] = []

    def record(grad: bool, plan: Any, inputs: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        rows = next(iter(layer.shown(inputs, args, kwargs, output)), None)
        if rows is not None and not found and rows.score.numel():
            degree = torch.bincount(rows.target, minlength=rows.size).to(torch.float32)
            spread = score_measures(rows.score, rows.target, degree)[SCORE_WITHIN_STD]
            numbers = entropy_measures(rows.attention, rows.target, degree, "_unit_input")
            maps = tuple(_scores_alone(layer.module, layer.scores(), output))
            found.append(AtUnitInput({**numbers, LOGIT_FROBENIUS: spread}, maps))
        layer.forget()

    try:
        args, kwargs = _scaled(arguments)
        layer.record = record  # type: ignore[method-assign]
        layer.attach()
        with torch.enable_grad():
            layer.module(*args, **kwargs)
    except Exception as error:  # Not every layer takes an input of another size.
        let_through(error)
    finally:
        layer.detach()
    return found[0] if found else None


def _scaled(arguments: Arguments) -> Arguments:
    """Node states at RMS 1: the first tensor of floats, and those of the same width that hold more than two numbers, as no mask does."""
    states: list[Tensor] = []

    def scaled(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(scaled, value))
        if isinstance(value, dict):
            return {key: scaled(one) for key, one in value.items()}
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2 or not value.numel():
            return value
        if states and (value.shape[-1] != states[0].shape[-1] or len(torch.unique(value)) < 3):
            return value
        states.append(value)
        size = value.detach().double().square().mean().sqrt()
        return value.detach() / size.clamp(min=torch.finfo(value.dtype).tiny).to(value.dtype)

    return tuple(scaled(list(arguments[0]))), scaled(arguments[1])


def _scores_alone(module: nn.Module, scores: list[Tensor], output: Tensor) -> Iterator[str]:
    """Children, or parameters of its own, whose every parameter is used for the scores and for nothing else."""
    nodes = {score.grad_fn for score in scores if score.grad_fn is not None}
    behind = _parameters(nodes, set())
    beside = _parameters({output.grad_fn} if output.grad_fn is not None else set(), nodes)
    parts: dict[str, list[bool]] = {}
    for name, parameter in module.named_parameters():
        part = name.rpartition(".")[0] or name
        parts.setdefault(part, []).append(id(parameter) in behind and id(parameter) not in beside)
    yield from (part for part, alone in parts.items() if all(alone))


def _parameters(nodes: set[Node], closed: set[Node]) -> set[int]:
    """Ids of the leaves that a graph reaches without passing through ``closed``."""
    seen, waiting, found = set(closed), list(nodes - closed), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found.add(id(leaf))
        waiting += [one for one, _ in node.next_functions if one is not None]
    return found
