"""Every other message-passing layer: input, output, gradients, and what its aggregation returns."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from gnnstab.probe.attaching.hooks import Placed
from gnnstab.probe.layers.layer_recorder import LayerRecorder, Plan
from gnnstab.probe.state import State
from gnnstab.probe.statistics import activation_measures, aggregation_measures
from gnnstab.records import Blind, LayerFacts
from gnnstab.records.vocabulary import AGGREGATION_EXPONENT

_NOT_JUDGED = "no adapter knows where its scores are; inputs, outputs and gradients that are tensors are recorded"


class OtherLayerRecorder(LayerRecorder):
    """Records a layer whose inside is not known."""

    def __init__(self, state: State, name: str, module: nn.Module) -> None:
        super().__init__(state, name, module)
        self._aggregates: list[Tensor] = []
        self._messages: tuple[Tensor, Tensor, int] | None = None
        self._widths: tuple[int, int] | None = None
        self._sums = getattr(module, "aggr", None) in ("add", "sum")

    def attach(self) -> None:
        """Begin to record; the aggregation is a module of its own, so its hook also lives in a compiled model."""
        if attends(self.module):
            note = Blind.other_attention(self.name, type(self.module).__name__, _NOT_JUDGED)
            self.state.unseen(note.layer, note.site, note.reason)
        aggregation = getattr(self.module, "aggr_module", None)
        if self._sums and isinstance(aggregation, nn.Module):
            hook = self.hook("the aggregation", self._after_aggregation)
            self._placed.append(Placed(aggregation, hook, with_kwargs=True))
        super().attach()

    def forget(self) -> None:
        """Drop what an interrupted call left behind."""
        self._aggregates = []
        self._messages = None

    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put input, output and the summed messages into the buffer."""
        xs = [x for x in inputs if isinstance(x, Tensor)]
        if self._widths is None and xs and xs[-1].dim() and output.dim():
            self._widths = (xs[-1].size(-1), output.size(-1))
        sums = self._aggregates
        sites = ("output", *["input"] * len(xs), *["aggregate"] * len(sums))
        self.state.buffer.put(plan.slots(sites), [output, *xs, *sums])
        if self.state.full and plan.full_step != self.state.step:
            plan.full_step = self.state.step
            self._measure(plan, xs, output)
        self.forget()

    def facts(self, position: int) -> LayerFacts:
        """What a message-passing layer of unknown inside shows of itself; widths that it does not declare are those of its first call."""
        module: Any = self.module
        seen = self._widths or (None, None)
        width = getattr(module, "in_channels", seen[0])
        pair = (width, width) if isinstance(width, int) else width
        known = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(w, int) for w in pair)
        out = getattr(module, "out_channels", seen[1])
        return LayerFacts(
            name=self.name,
            kind=type(module).__name__,
            position=position,
            attention=False,
            in_channels=pair if known else None,
            out_channels=out if isinstance(out, int) else None,
            aggregation=_aggregation(module),
        )

    def _measure(self, plan: Plan, xs: Sequence[Tensor], output: Tensor) -> None:
        numbers: dict[str, Any] = {}
        floating = [x.detach() for x in xs if x.is_floating_point() and x.layout is torch.strided]
        if floating and output.is_floating_point():
            entering, leaving = self._nodes_first(floating[-1]), self._nodes_first(output.detach())
            batch = self.state.batch
            if batch is not None and (len(batch) != len(leaving) or len(batch) != len(entering)):
                batch = None
            numbers.update(activation_measures(entering, leaving, batch))
        if self._messages is not None:
            sums = aggregation_measures(*self._messages)
            if normalises(self.module):
                del sums[AGGREGATION_EXPONENT]  # Edges that are left out would change the weights of the others.
            numbers.update(sums)
        self.state.queue(plan.layer, plan.mode, plan.call, numbers)

    def _after_aggregation(self, grad: bool, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        self._aggregates.append(output.detach())
        # PyG's Aggregation hands everything but the messages on by name.
        index = args[1] if len(args) > 1 else kwargs.get("index")
        if self.state.full and isinstance(index, Tensor):
            axis = kwargs.get("dim", -2)
            self._messages = (args[0].detach().movedim(axis, 0).flatten(1), index, output.shape[axis])

    def _nodes_first(self, x: Tensor) -> Tensor:
        """(N, …) of one graph; (N, B · F) of several states (B, N, F) of the same nodes."""
        axis: int = getattr(self.module, "node_dim", 0)
        return x.movedim(axis, 0).flatten(1) if x.dim() > 2 else x


def _aggregation(module: Any) -> str | None:
    """``add``, ``mean``, …; ``weighted mean`` for a sum whose weights are normalised; None where it is not known."""
    name = getattr(module, "aggr", None)
    if not isinstance(name, str):
        return None
    return "weighted mean" if name in ("add", "sum") and normalises(module) else name


def normalises(module: nn.Module) -> bool:
    """True for a layer whose messages are weighted by in-degree (GCN) or by a softmax (GAT): its sum is a mean, or near one."""
    return attends(module) or getattr(module, "normalize", False) is True


def attends(module: nn.Module) -> bool:
    """True for a message-passing layer whose class, or one that it inherits from, calls PyG's softmax over edges."""
    if getattr(module, "attention", True) is False or getattr(module, "use_attention", True) is False:
        return False  # GeneralConv and HypergraphConv attend only when they are asked to.
    kinds = type(module).__mro__
    own = kinds[: kinds.index(MessagePassing)] if MessagePassing in kinds else ()
    functions = [f for kind in own for f in vars(kind).values() if isinstance(f, FunctionType)]
    return any(f.__globals__.get(name) is softmax for f in functions for name in f.__code__.co_names)
