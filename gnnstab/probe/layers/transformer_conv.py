"""TransformerConv and its subclasses: scores, attention, gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.hooks import Placed
from gnnstab.probe.layers.base import Call
from gnnstab.probe.layers.edges import edge_ends
from gnnstab.probe.layers.tap import Seen, Tap, Untappable
from gnnstab.probe.state import State
from gnnstab.probe.statistics import attention_measures
from gnnstab.probe.watch import Plan, Watch
from gnnstab.records import LayerFacts


class TransformerConvWatch(Watch):
    """Records one TransformerConv."""

    attention = True
    sites = ("input", "output", "score", "attention")
    compiled_sites = ("output", "input", "score", "attention", "gate")

    def __init__(self, state: State, name: str, module: nn.Module) -> None:
        super().__init__(state, name, module)
        self._tap: Tap | None = None
        self._silent = False
        self._seen: list[Seen] = []
        self._gate: Tensor | None = None
        self._message: Tensor | None = None
        self._layout: dict[tuple[int, int, bool], tuple[str, ...]] = {}

    def attach(self) -> None:
        """Begin to record: a tap on ``message``, a hook on the layer and one on its gate."""
        try:
            self._tap = Tap.attach(self.module, self)
        except Untappable as reason:
            for site in ("score", "attention"):
                self.state.unseen(self.name, site, str(reason))
        gate = getattr(self.module, "lin_beta", None)
        if isinstance(gate, nn.Module):
            self._placed.append(Placed(gate, self.hook("the gate", self._after_gate, self._compiled_gate)))
        super().attach()

    def pause(self) -> None:
        """Take tap and hooks off until `resume`."""
        if self._tap is not None:
            self._tap.detach(self)
        super().pause()

    def resume(self) -> None:
        """Put tap and hooks back."""
        if self._tap is not None and not self._silent:
            self._tap = Tap.attach(self.module, self, self._tap)
        super().resume()

    def detach(self) -> None:
        """Leave the layer as it was found."""
        if self._tap is not None:
            self._tap.detach(self)
        super().detach()
        self.forget()

    def saw_compiled(self, score: Tensor, attention: Tensor | None) -> None:
        """Record one softmax inside a compiled graph."""
        self.note(2, score)
        self.note(3, attention)

    def failed(self, error: Exception) -> None:
        """The tap could not hand something over."""
        self._silent = True
        self.state.failsafe.note(f"the scores of {self.name}", error)

    def returned(self, message: Tensor) -> None:
        """Keep the weighted values of one call, in a step of the full tier."""
        if self.state.full and not self.state.foreign():
            self._message = message

    def saw(self, seen: Seen) -> None:
        """Keep one softmax until the layer returns."""
        # A checkpointed segment that is run again in the backward stops as soon as it has what the gradients need: the
        # layer may then never return.
        again = torch._C._current_graph_task_id() != -1 and self._counts[3] > 0
        if not again and not self.state.foreign():
            self._seen.append(seen)

    def forget(self) -> None:
        """Drop what an interrupted call left behind."""
        self._seen = []
        self._gate = self._message = None

    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put input, output, scores, weights and gate of one call into the stage."""
        seen, gate = self._seen, self._gate
        xs = inputs[:1] if len(inputs) == 2 and inputs[0] is inputs[1] else inputs
        tensors = [output, *xs]
        for one in seen:
            tensors += (one.score, one.attention)
            plan.dtype = one.score.dtype
        if gate is not None:
            gate = gate.sigmoid()
            tensors.append(gate)
        variant = (len(xs), len(seen), gate is not None)
        sites = self._layout.get(variant)
        if sites is None:
            sites = self._layout[variant] = _layout(*variant)
        self.state.stage.put(plan.slots(sites), tensors)
        if self.state.full and plan.full_step != self.state.step and len(seen) == 1:
            plan.full_step = self.state.step
            self._measure(plan, self._call(inputs, args, kwargs, output, gate))
        self.forget()

    def facts(self, position: int) -> LayerFacts:
        """The configuration in force."""
        return conv_facts(self.name, self.module, position)

    def _call(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor, gate: Tensor | None) -> Call:
        edge_index = args[1] if len(args) > 1 else kwargs["edge_index"]
        edge_attr = args[2] if len(args) > 2 else kwargs.get("edge_attr")
        flow = getattr(self.module, "flow", "source_to_target")
        source, target, values = edge_ends(edge_index, flow)
        (seen,) = self._seen
        index = target if seen.index is None else seen.index
        return Call(
            x_source=inputs[0].detach(),
            x_target=inputs[-1].detach(),
            index_source=source,
            index_target=index,
            edge_attr=values if edge_attr is None else edge_attr.detach(),
            score=seen.score.detach(),
            attention=seen.attention.detach(),
            output=output.detach(),
            gate=gate,
            message=self._aggregated(index, output),
        )

    def _aggregated(self, index: Tensor, output: Tensor) -> Tensor | None:
        """(N_t, H·C) or (N_t, C): the sum over the edges of every target, as the layer joins or averages its heads."""
        message, conv = self._message, self.module
        if message is None or message.dim() != 3 or conv.aggr not in ("add", "sum"):
            return None
        summed = message.new_zeros(output.shape[0], *message.shape[1:]).index_add_(0, index, message.detach())
        return summed.flatten(1) if conv.concat else summed.mean(dim=1)

    def _measure(self, plan: Plan, call: Call) -> None:
        batch = self.state.batch
        if batch is not None and len(batch) != len(call.x_target):
            batch = None
        self.state.queue(plan.layer, plan.mode, plan.call, attention_measures(call, self.module, batch))

    def _after_gate(self, grad: bool, module: nn.Module, args: Any, output: Tensor) -> None:
        self._gate = output.detach()

    def _compiled_gate(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.note(4, output.sigmoid())


def _layout(inputs: int, seen: int, gate: bool) -> tuple[str, ...]:
    return ("output", *["input"] * inputs, *["score", "attention"] * seen, *["gate"] * gate)


def conv_facts(name: str, conv: Any, position: int) -> LayerFacts:
    """The configuration of a TransformerConv as its attributes show it."""
    width = conv.in_channels
    beta = getattr(conv, "lin_beta", None) is not None
    linear = getattr(conv, "lin_query", None)
    return LayerFacts(
        name=name,
        kind=type(conv).__name__,
        position=position,
        attention=True,
        in_channels=_widths(conv, (width, width) if isinstance(width, int) else tuple(width)),
        out_channels=conv.out_channels,
        heads=conv.heads,
        concat=conv.concat,
        beta=beta,
        beta_requested=True if beta else (False if conv.root_weight else None),
        dropout=float(conv.dropout),
        edge_dim=conv.edge_dim or 0,
        root_weight=conv.root_weight,
        bias=None if linear is None else linear.bias is not None,
        aggregation=conv.aggr if isinstance(conv.aggr, str) else None,
    )


def _widths(conv: Any, declared: tuple[int, ...]) -> tuple[int, int]:
    """Input widths; a lazy layer declares -1 and knows better after its first call."""
    actual = [getattr(getattr(conv, part, None), "in_channels", -1) for part in ("lin_key", "lin_query")]
    return tuple(a if d < 0 else d for d, a in zip(declared, actual, strict=True))  # type: ignore[return-value]
