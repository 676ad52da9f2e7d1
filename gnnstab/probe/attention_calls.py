"""`attention`: scores and attention of every call of every attention layer, on the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.attaching.discovery import find_layers
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.layers.layer_recorder import LayerRecorder, Plan
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.replica import copied, device_of, eager, on_device, unwrap, whole_copy
from gnnstab.probe.state import State
from gnnstab.randomness import keeps_random_state, same_random_state


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One softmax of one call of one layer. E edges, H heads; everything detached."""

    layer: str
    """Module path."""

    kind: str
    """Class name."""

    call: int
    """Which softmax of this layer it is, from 0, over all batches."""

    score: Tensor
    """(E, H) what softmax received."""

    attention: Tensor
    """(E, H) what it returned, before dropout; sums to 1 over the edges of each target."""

    source: Tensor | None
    """(E,) where each edge comes from; None where a layer of another class makes edges of its own."""

    target: Tensor
    """(E,) where it goes to."""


@keeps_random_state
def attention(model: nn.Module, batch: Any) -> list[AttentionCall]:
    """Scores and attention of every attention layer for a batch, in the order of the calls.

    The edges stand as the layer attended over them: those that were given in their order, self-loops that the layer adds
    behind them (`GATConv` and `GATv2Conv` first take out those that were given). Of dense attention every row and key that no
    mask has taken away is an edge; rows and keys are counted through all graphs of the dense batch, padding included:
    graph · length + position. The model is copied, and the copy runs in evaluation mode without gradients.

    Args:
        model: Any module.
        batch: A ``Data``, a tuple of positional or a dict of keyword arguments, or an iterable of those.

    Raises:
        UsageError: The model cannot be copied or fails on the batch, or no attention was seen in it.
    """
    twin = in_mode(whole_copy(unwrap(model)[0]), False)
    device = device_of(twin)
    state, found = State(), _Found()
    layers = [layer for layer in find_layers(twin, state) if layer.attention]
    for layer in layers:
        layer.record = found.of(layer)  # type: ignore[method-assign]
        layer.attach()
    try:
        with torch.no_grad(), same_random_state():
            for args, kwargs in as_arguments(batch, twin):
                # A forward may write into what it is given.
                args, kwargs = copied(on_device((args, kwargs), device))
                eager(twin)(*args, **kwargs)
    except UsageError:
        raise
    except Exception as error:
        let_through(error)
        raise UsageError(
            f"the forward of {type(model).__name__} failed on the batch: {type(error).__name__}: {error}"
        ) from error
    finally:
        for layer in layers:
            layer.detach()
    if not found.calls:
        raise UsageError(f"no attention was seen in {type(model).__name__}{_why(state)}")
    return found.calls


class _Found:
    """What was seen so far."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def of(self, layer: LayerRecorder) -> Any:
        """What takes the place of the recording of one layer."""

        def record(grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
            kind = type(layer.module).__name__
            for rows in layer.shown(inputs, args, kwargs, output):
                call = sum(one.layer == layer.name for one in self.calls)
                seen = (rows.score.clone(), rows.attention.clone(), rows.source, rows.target)
                self.calls.append(AttentionCall(layer.name, kind, call, *seen))
            layer.forget()

        return record


def _why(state: State) -> str:
    reasons = [f"{note.layer}: {note.reason}" for note in state.blinds()]
    reasons += [f"{event.detail}" for event in state.error_guard.events]
    return f": {'; '.join(dict.fromkeys(reasons))}" if reasons else "; it calls no softmax that weights values"
