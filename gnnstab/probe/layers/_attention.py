"""Every attention layer that has an adapter: scores, attention, gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.layers import Call, Layer
from gnnstab.probe.attaching.hooks import Placed
from gnnstab.probe.attaching.softmax_tap import SoftmaxCall
from gnnstab.probe.layers._tapped import TappedRecorder
from gnnstab.probe.layers.layer_recorder import Plan
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.probe.state import State
from gnnstab.probe.statistics import attention_measures, degree_measures
from gnnstab.probe.statistics.dense import ROWS, Rows
from gnnstab.probe.statistics.numbers import Measured
from gnnstab.records import LayerFacts
from gnnstab.records.vocabulary import DEGREE_ISOLATED_READ_SHARE

_STATIC = "scores of more than two axes, as a graph with a batch of features has them: only their extremes are recorded"
_SPARSE = "sparse features, too many to be measured densely: only extremes are recorded"


class AttentionRecorder(TappedRecorder):
    """Records one attention layer, as its adapter says."""

    compiled_sites = ("output", "input", "score", "attention", "gate")

    def __init__(self, state: State, name: str, module: nn.Module, kind: Layer) -> None:
        super().__init__(state, name, module)
        self.kind = kind
        self._seen = []
        self._gate: Tensor | None = None
        self._message: Tensor | None = None
        self._layout: dict[tuple[int, int, bool], tuple[str, ...]] = {}

    def attach(self) -> None:
        """Begin to record; a gate has a hook of its own."""
        gate = self.kind.gate(self.module)
        if gate is not None:
            self._placed.append(Placed(gate, self.hook("the gate", self._after_gate, self._compiled_gate)))
        super().attach()

    def returned(self, message: Tensor) -> None:
        """Keep the weighted values of one call, in a step of the full tier."""
        if self.state.full and not self.state.foreign():
            self._message = message

    def forget(self) -> None:
        """Drop what an interrupted call left behind."""
        self._seen, self._gate, self._message = [], None, None

    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put input, output, scores, weights and gate of one call into the buffer."""
        seen, gate = self._seen, self._gate
        xs = inputs[:1] if len(inputs) == 2 and (inputs[1] is inputs[0] or inputs[1] is None) else inputs
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
        self.state.buffer.put(plan.slots(sites), tensors)
        if not seen:  # Some layers call no softmax where there is no edge.
            self.state.empty = True
            plan.edges = not any(t.shape == (2, 0) for _, t in tensors_in((args, kwargs)))
            if self.state.full and not plan.edges:
                self.state.queue(plan.layer, plan.mode, plan.call, _without_edge(output))
        if self.state.full and plan.full_step != self.state.step and seen and xs and inputs[-1] is not None:
            plan.full_step = self.state.step
            self._measure(plan, inputs, args, kwargs, output, gate)
        self.forget()

    def facts(self, position: int) -> LayerFacts:
        """The configuration in force."""
        return self.kind.facts(self.name, self.module, position)

    def shown(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> Iterator[Rows]:
        """On the edges as the adapter tells them."""
        if self._seen and inputs[-1] is not None:
            call = self._call(inputs, args, kwargs, output, None)
            size = len(call.x_target) if call.groups is None else call.groups
            yield Rows(call.score, call.attention, call.index_target, size, call.index_source)

    def _call(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor, gate: Tensor | None) -> Call:
        seen = together(self._seen, len(output))
        x_source, x_target = self.kind.nodes(inputs)
        groups = len(x_target) if seen.size is None else seen.size
        source, target, features = self.kind.edges(self.module, args, kwargs, seen.index)
        message = None
        if self._message is not None and len(self._seen) == 1:
            message = self.kind.joined(self.module, self._message, target, groups)
        return Call(
            x_source=_plain(x_source),
            x_target=_plain(x_target),
            index_source=source,
            index_target=target,
            edge_attr=features,
            score=seen.score.detach(),
            attention=seen.attention.detach(),
            output=output.detach(),
            gate=gate,
            message=message,
            groups=groups,
        )

    def _measure(
        self, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor, gate: Tensor | None
    ) -> None:
        if any(one.score.dim() > 2 for one in self._seen):
            self.state.unseen(self.name, "attention", _STATIC)
            return
        if any(x.layout is not torch.strided and x.numel() > ROWS for x in self.kind.nodes(inputs)):
            self.state.unseen(self.name, "attention", _SPARSE)
            return
        call = self._call(inputs, args, kwargs, output, gate)
        if not call.score.numel():
            self.state.empty = True
            self.state.queue(plan.layer, plan.mode, plan.call, _without_edge(output))
            return
        batch = self.state.batch
        if batch is not None and not len(batch) == len(call.x_target) == len(output):
            batch = None
        self.state.queue(plan.layer, plan.mode, plan.call, attention_measures(call, self.kind, self.module, batch))
        groups = len(call.x_target) if call.groups is None else call.groups
        facts = self.facts(0)
        bare = facts.get("root_weight") is False or facts.get("add_self_loops") is False
        if output.requires_grad and len(output) == groups and bare:
            alone = torch.ones(groups, dtype=torch.bool, device=output.device).index_fill_(0, call.index_target, False)
            output.register_hook(partial(self._reached, plan, alone))  # type: ignore[no-untyped-call]

    def _reached(self, plan: Plan, alone: Tensor, gradient: Tensor) -> None:
        """What the loss asks of nodes without incoming edges: the layer gives them 0 whatever is asked."""

        def note() -> None:
            with torch.no_grad():
                asked = alone & (gradient.detach().flatten(1) != 0).any(1)
                share = {DEGREE_ISOLATED_READ_SHARE: Measured(asked.to(torch.float32).mean())}
                self.state.queue(plan.layer, plan.mode, plan.call, share)

        self.state.error_guard.run(f"the gradient of {plan.layer}", note)

    def _after_gate(self, grad: bool, module: nn.Module, args: Any, output: Tensor) -> None:
        self._gate = output.detach()

    def _compiled_gate(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.note("gate", output.sigmoid())


def _without_edge(output: Tensor) -> dict[str, Measured]:
    """In-degrees of the targets (N, …) of a call that had no edge."""
    return degree_measures(output.new_empty(0, dtype=torch.long), len(output))


def together(seen: Sequence[SoftmaxCall], targets: int) -> SoftmaxCall:
    """Several softmaxes of one call as one over groups apart, scores (E, H) in any case; ``targets`` for a size unsaid."""
    if len(seen) == 1:
        (one,) = seen
        return SoftmaxCall(_columns(one.score), _columns(one.attention), one.index, one.size)
    begins, indices = 0, []
    for one in seen:
        if one.index is not None:
            indices.append(one.index + begins)
        begins += targets if one.size is None else one.size
    score, attention = torch.cat([_columns(s.score) for s in seen]), torch.cat([_columns(s.attention) for s in seen])
    return SoftmaxCall(score, attention, torch.cat(indices), begins)


def _columns(values: Tensor) -> Tensor:
    return values.detach().unsqueeze(1) if values.dim() == 1 else values.detach()


def _plain(x: Tensor) -> Tensor:
    return x.detach() if x.layout is torch.strided or x.numel() > ROWS else x.detach().to_dense()


def _layout(inputs: int, seen: int, gate: bool) -> tuple[str, ...]:
    return ("output", *["input"] * inputs, *["score", "attention"] * seen, *["gate"] * gate)
