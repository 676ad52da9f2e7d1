"""The symptoms of one forward and backward, and nothing else: a tenth of what a look through the recorder costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_geometric.utils import softmax

from gnnstab.layers import layer_of
from gnnstab.probe.attaching.discovery import find_layers
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.layers import DenseSoftmaxRecorder, MultiheadRecorder
from gnnstab.probe.layers.layer_recorder import LayerRecorder
from gnnstab.probe.measure import read_out
from gnnstab.probe.optimizer.softening import Scaled, homes
from gnnstab.probe.places import dead_share as closed_share
from gnnstab.probe.places import saturated_share
from gnnstab.probe.pooling import sums_watched
from gnnstab.probe.replaying.replica import Autocast, device_of, eager, on_device, tracked
from gnnstab.probe.replaying.zero_output import loss_over_zero, row_mean
from gnnstab.probe.state import State
from gnnstab.probe.statistics.activations import clip_share, dead_share
from gnnstab.probe.statistics.attention import entropy_measures, precision_measures
from gnnstab.probe.statistics.numbers import as_rows, rms
from gnnstab.probe.statistics.smoothness import relative_difference
from gnnstab.records import Event, LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import (
    CHANNELS_DEAD_SHARE,
    CLIP_SHARE,
    GRADIENT_INPUT_RMS,
    INPUT_MAX_ABS,
    LOSS_OVER_ZERO,
    OUTPUT_MAX_ABS,
    PLACE_DEAD_SHARE,
    PLACE_SATURATED_SHARE,
    SCORE_MAX_ABS,
    SMOOTHNESS_RELATIVE,
)
from gnnstab.signals.gradients import over_depth
from gnnstab.torch_private import without_torch_function
from gnnstab.verification.interventions._trial import Edit

MOSTLY = 0.02
"""Share of the rows on which a channel may be positive and still count as dead, as at the places."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one forward, and one backward where it was asked for, has shown."""

    signals: Signals
    loss: float
    """NaN where no loss was given."""

    outputs: Mapping[str, Tensor]
    """What every watched layer gave, detached."""

    post_norms: tuple[str, ...] = ()
    """Normalisations of a sum of a branch and what the normalisation before gave: post-norm; known after a backward."""

    over_ignorant: float = math.nan
    """The loss over that of the best answer that tells no row from another: zeros, or the mean of the rows; NaN where it is not known."""


def look(
    model: nn.Module,
    batch: Any,
    edit: Edit,
    *,
    loss: Any,
    precision: str,
    layers: tuple[LayerFacts, ...],
    signals: frozenset[str],
    backward: bool,
) -> Look:
    """Run ``model`` on one batch with the edit; ``model`` is the caller's to give away.

    ``layers`` are looked at, by their names as modules, and of the costlier ``signals`` those that are named. Raises whatever the forward or the loss raises.
    """
    watched = _Watched(layers, edit, signals)
    arguments = on_device(as_arguments(batch, model)[0], device_of(model))
    with ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(backward))
        stack.enter_context(watched.attached(model))
        if edit.unclamped:
            stack.enter_context(_Unclamped())
        if signals & _AT_PLACES:
            stack.enter_context(_Activations(watched.saw))
        stack.enter_context(sums_watched(pool_mean=edit.pool_mean, mean=edit.hand_mean))
        with Autocast.of(model, edit.precision or precision).context():
            positional, named = tracked(arguments) if backward else arguments
            output = eager(model)(*positional, **named)
        objective = read_out(output) if loss is None else loss(output, batch).reshape(())
        if backward and objective.requires_grad:
            objective.backward()
    finite = bool(torch.isfinite(objective.detach()))
    values = watched.signals()
    value = float(objective.detach())
    over = loss_over_zero(output, value, batch, loss)
    values += [] if math.isnan(over) else [Signal(LOSS_OVER_ZERO, over)]
    values += over_depth(values, layers, "batch")
    broken = watched.broken or not finite
    events = (Event(0, "non-finite", stage="output"),) if broken else ()
    return Look(
        Signals("model", layers, tuple(values), events=events),
        math.nan if loss is None else value,
        watched.outputs,
        tuple(watched.post_norms),
        max(over, loss_over_zero(output, value, batch, loss, row_mean)),
    )


class _Unclamped(TorchFunctionMode):
    """Lets everything through clamps that have an upper limit; a lower limit alone guards a logarithm or a division."""

    _CLAMPS = (torch.clamp, torch.clip, Tensor.clamp, Tensor.clamp_, Tensor.clip, Tensor.clip_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.hardtanh:
            low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
            return torch.relu(args[0]) if low == 0 else args[0]  # ReLU6 is a ReLU with a limit
        if func in self._CLAMPS and args and args[0].is_floating_point() and _upper(args, kwargs) is not None:
            return args[0]
        return func(*args, **kwargs)


_AT_PLACES = frozenset({PLACE_SATURATED_SHARE, PLACE_DEAD_SHARE})
"""Signals of activations, wherever they stand."""


class _Activations(TorchFunctionMode):
    """Shows what every tanh and every ReLU gives, under the signal that tells of it."""

    _TANHS = (torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, nn.functional.tanh)
    _RELUS = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, nn.functional.relu)

    def __init__(self, saw: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._saw = saw

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self._TANHS or func in self._RELUS:
            self._saw(PLACE_SATURATED_SHARE if func in self._TANHS else PLACE_DEAD_SHARE, result.detach())
        return result


def _upper(args: Any, kwargs: Mapping[str, Any]) -> Any:
    return args[2] if len(args) > 2 else kwargs.get("max")


class _Watched:
    """Collects the signals of the attention layers while the model runs, and makes the edits that no copy has to hold."""

    def __init__(self, layers: tuple[LayerFacts, ...], edit: Edit, signals: frozenset[str]) -> None:
        self._wanted = signals
        self._facts = {facts.name: facts for facts in layers if facts.attention}
        self._edit = edit
        self._products: dict[str, float | None] = {}
        """Factor from the scores of a layer to the largest number on the way to them, see `precision_measures`."""

        self._by_recorder: set[str] = set()
        """Layers whose scores are not seen in `_softmax`."""

        self._running: list[str] = []
        self._values: list[Signal] = []
        self._gradients: dict[str, Tensor] = {}
        self._entered: set[str] = set()
        self._latest: tuple[Any, list[str]] = (None, [])
        """The output of the module that has run last, and its names: a container hands on that of its last part."""
        self.outputs: dict[str, Tensor] = {}
        self.post_norms: dict[str, None] = {}
        self.broken = False

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Hooks on the layers, and a wrapper where their modules say ``softmax``; all gone afterwards."""
        # A model that is itself a layer is recorded under the name of its class.
        modules = {type(model).__name__: model, **dict(hookable(model))}
        handles = []
        known: dict[int, Any] = {}
        recorders = [one for one in find_layers(model, State()) if one.name in self._facts and _by_recorder(one)]
        # PyG's softmax is scaled and seen where it is called; within it is an exponential, which may not be scaled once more.
        self._by_recorder = {one.name for one in recorders}
        factors = {name: one for name, one in self._edit.score_factors.items() if name in self._by_recorder}
        scaled = Scaled(factors) if factors else None
        for recorder in recorders:
            recorder.record = partial(self._recorded, recorder)  # type: ignore[method-assign]
            recorder.attach()
        for name in self._facts:
            if name in modules:
                kind = layer_of(modules[name])
                self._products[name] = None if kind is None else kind.product(modules[name])
                handles.append(modules[name].register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
                handles.append(modules[name].register_forward_hook(partial(self._leave, name), always_call=True))
                known |= {id(home): home for home in homes(modules[name])}
        for name, module in modules.items():
            if name not in self._facts and (name in self._edit.output_factors or name in self._edit.centred):
                handles.append(module.register_forward_hook(partial(self._changed, name)))
            if self._wanted & _AT_PLACES:
                handles.append(module.register_forward_hook(partial(self._ran, name)))
            if "Norm" in type(module).__name__:
                handles.append(module.register_forward_pre_hook(partial(self._normalise, name)))
        try:
            for home in known.values():
                home.softmax = self._softmax
            with nullcontext() if scaled is None else scaled:
                if scaled is not None:
                    scaled.watch(model)
                yield
        finally:
            for recorder in recorders:
                recorder.detach()
            for home in known.values():
                home.softmax = softmax
            for handle in handles:
                handle.remove()

    def saw(self, signal: str, result: Tensor) -> None:
        """Measure a tanh or a ReLU by the names of the module that stands before it."""
        for name in self._latest[1] if signal in self._wanted else ():
            share = saturated_share if signal == PLACE_SATURATED_SHARE else closed_share
            self._add(signal, share(result), name)

    def _ran(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        before, names = self._latest
        self._latest = (output, [*names, name] if output is before else [name])

    def signals(self) -> list[Signal]:
        """Everything that was seen."""
        gradients = [
            Signal(GRADIENT_INPUT_RMS, float(value), name, detail={"mode": "eval"})
            for name, value in self._gradients.items()
        ]
        return [*self._values, *gradients]

    def _normalise(self, name: str, module: nn.Module, args: Any) -> None:
        node = getattr(args[0], "grad_fn", None) if args else None
        parts = node.next_functions if node is not None and node.name().startswith("Add") else ()
        if any(part is not None and "Norm" in part.name() for part, _ in parts):
            self.post_norms[name] = None

    def _enter(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(name)
        x = args[0] if args else kwargs.get("x")
        x = x[-1] if isinstance(x, (tuple, list)) else x
        if not isinstance(x, Tensor) or not x.is_floating_point() or name in self._entered:
            return
        self._entered.add(name)
        self._measure(INPUT_MAX_ABS, _peak, x, name)
        self._measure(CLIP_SHARE, clip_share, x, name)
        if x.requires_grad:
            x.register_hook(partial(self._gradient, name))  # type: ignore[no-untyped-call]

    def _gradient(self, name: str, gradient: Tensor) -> None:
        self._gradients[name] = rms(gradient)
        self.broken |= not bool(torch.isfinite(gradient).all())

    def _leave(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        self._running.pop()
        changed = self._changed(name, module, args, output)
        first = changed[0] if isinstance(changed, tuple) and changed else changed
        if not isinstance(first, Tensor):
            return None
        seen = first.detach()
        self.outputs[name] = seen
        self._measure(OUTPUT_MAX_ABS, _peak, seen, name)
        self._measure(CHANNELS_DEAD_SHARE, dead_share, seen, name)
        self._measure(SMOOTHNESS_RELATIVE, relative_difference, seen, name)
        self.broken |= not bool(torch.isfinite(seen).all())
        return None if changed is output else changed

    def _changed(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        """What a module returns, with the edit; attention may return its weights beside it."""
        if isinstance(output, tuple) and output:
            first = self._changed(name, module, args, output[0])
            return output if first is output[0] else (first, *output[1:])
        if not isinstance(output, Tensor):
            return output
        changed = output * self._edit.output_factors[name] if name in self._edit.output_factors else output
        if name in self._edit.centred:
            rows = as_rows(changed.detach())
            dead = (rows > 0).double().mean(0) <= MOSTLY
            changed = changed - rows.mean(0) * dead
        return changed

    def _softmax(self, src: Tensor, index: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        name = self._running[-1] if self._running else ""
        name = "" if name in self._by_recorder else name
        if name in self._edit.score_factors:
            src = src * self._edit.score_factors[name].to(src)
        result: Tensor = softmax(src, index, *args, **kwargs)
        if name and isinstance(index, Tensor) and src.dim() in (1, 2):  # One head may come without an axis.
            self._saw(name, src.detach().reshape(len(src), -1), result.detach().reshape(len(src), -1), index)
        return result

    def _recorded(
        self, recorder: LayerRecorder, grad: bool, plan: Any, inputs: Any, args: Any, kwargs: Any, output: Any
    ) -> None:
        """One call of a layer whose softmax is over a dense matrix: what it received is seen before it is scaled."""
        with without_torch_function():  # The layer is still running: what scales its scores would scale these.
            rows = next(recorder.shown(inputs, args, kwargs, output), None)
            recorder.forget()
            if rows is None or not rows.score.numel():
                return
            score, attention = rows.score.detach(), rows.attention.detach()
            factors = self._edit.score_factors.get(recorder.name)
            if factors is not None:
                score = score * (factors if len(factors.reshape(-1)) == score.shape[1] else factors.min()).to(score)
                attention = softmax(score, rows.target, num_nodes=rows.size)
            self._saw(recorder.name, score, attention, rows.target)

    def _saw(self, name: str, score: Tensor, attention: Tensor, index: Tensor) -> None:
        degree = torch.bincount(index).to(attention.dtype)
        found = {**entropy_measures(attention, index, degree), **precision_measures(score, self._products[name])}
        for signal, measured in found.items():
            if measured.total is not None:
                self._add(signal, float(measured.total), name)
        self._measure(SCORE_MAX_ABS, _peak, score, name)

    def _measure(self, signal: str, function: Callable[[Tensor], Any], x: Tensor, layer: str) -> None:
        if signal in self._wanted and x.dim() > 1 and x.numel():
            self._add(signal, float(function(x.detach().flatten(0, -2))), layer)

    def _add(self, signal: str, value: float, layer: str) -> None:
        self._values.append(Signal(signal, value, layer))


def _by_recorder(recorder: LayerRecorder) -> bool:
    """True of attention that does not call PyG's softmax by that name: dense, fused, or over edges by other means."""
    dense = isinstance(recorder, (DenseSoftmaxRecorder, MultiheadRecorder))
    return recorder.attention and (dense or not any(homes(recorder.module)))


def _peak(x: Tensor) -> Tensor:
    return x.abs().max()
