"""Attention of classes that no adapter describes: seen by what their code does, judged by what every attention has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.layers import Layer
from gnnstab.layers.edges import plain_tensor
from gnnstab.layers.generic import SCORE_MAPS, GenericLayer
from gnnstab.probe.attaching.softmax_tap import SoftmaxCall
from gnnstab.probe.attaching.stand_in import StandIn
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.layers._dense_softmax import Attended, Attending
from gnnstab.probe.layers._exponentials import OverEdges
from gnnstab.probe.layers._tapped import TappedRecorder
from gnnstab.probe.layers.edge_products import multiplied_cosines, multiplied_products
from gnnstab.probe.layers.layer_recorder import IN_GRAPH, LayerRecorder, Plan
from gnnstab.probe.state import State
from gnnstab.probe.statistics.dense import MASKED, Rows, as_edges, fused_softmax, product_scores
from gnnstab.probe.statistics.layer import activation_measures, softmax_measures
from gnnstab.probe.statistics.numbers import Measured
from gnnstab.records import LayerFacts
from gnnstab.records.vocabulary import ATTENTION_VANISHED_SHARE, SCORE_COSINE_SCALE, SCORE_PRODUCT_SCALE

_NO_ATTENTION = 3
"""Calls without any attention after which a module is no longer looked at."""


APART = 100.0
"""Times the largest other score from which on a number at or below `MASKED` is a mask's: scores that have grown so far leave no such gap."""

_UNTOLD = f"its code names what attention is made of; scores are {IN_GRAPH}"


class SoftmaxRecorder(LayerRecorder):
    """Records input, output, scores and attention of one layer."""

    attention = True
    full_sites = ("score", "attention")

    def __init__(self, state: State, name: str, module: nn.Module, family: str, places: tuple[str, ...] = ()) -> None:
        super().__init__(state, name, module)
        self.kind: Layer = GenericLayer(family, places)
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.maps: tuple[str, ...] = ()
        """Parts that were seen to serve the scores alone."""

    def facts(self, position: int) -> LayerFacts:
        """What attributes of the customary names show."""
        facts = self.kind.facts(self.name, self.module, position)
        return replace(facts, options={**facts.options, SCORE_MAPS: ",".join(self.maps)}) if self.maps else facts

    def scores(self) -> list[Tensor]:
        """What the softmaxes of the call that has just returned received, as parts of its graph."""
        return []

    def _after(self, grad: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.given = (args, kwargs)
        inputs = tuple(tensors((args, kwargs)))
        outputs = tuple(tensors(output))
        if not inputs:  # a whole batch object: its features are the input
            inputs = tuple(x for x in named_tensors(args, kwargs).values() if x.is_floating_point())
        if outputs:  # A module that is given ids alone has no input of numbers; its scores are recorded all the same.
            super()._after(grad, module, (inputs[:1],), {}, outputs[0])
        else:
            self.forget()
        self.given = ((), {})

    def put(self, plan: Plan, inputs: Sequence[Any], output: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Put input, output, scores and attention of one call into the buffer, masked scores left out."""
        sites = ("output", *["input"] * len(inputs), *["score", "attention"] * len(seen))
        staged = [output, *inputs]
        for score, attention in seen:
            staged += [score.masked_fill(score <= MASKED, 0.0), attention]
            plan.dtype = score.dtype
        self.state.buffer.put(plan.slots(sites), staged)

    def measure(self, plan: Plan, inputs: Sequence[Any], output: Tensor, rows: Rows) -> None:
        """Queue the numbers of one call."""
        self.state.empty |= not rows.score.numel()
        numbers: dict[str, Measured] = softmax_measures(rows.score, rows.attention, rows.target, rows.size)
        if inputs and output.is_floating_point():
            batch = self.state.batch
            if batch is not None and not len(batch) == len(output) == len(inputs[-1]):
                batch = None
            numbers.update(activation_measures(inputs[-1].detach(), output.detach(), batch))
        self.state.queue(plan.layer, plan.mode, plan.call, numbers)

    def scales(self, plan: Plan, over_edges: Sequence[Tensor], dense: Sequence[Attended] = ()) -> None:
        """Queue what multiplies q·k/√d, or cosines, the largest of all scores of one call."""
        for name, of_edges, cosines in (
            (SCORE_PRODUCT_SCALE, multiplied_products, False),
            (SCORE_COSINE_SCALE, multiplied_cosines, True),
        ):
            found = [of_edges(score) for score in over_edges]
            found += [one.scale for one in dense if one.cosines is cosines]
            known = [scale for scale in found if scale is not None]
            if known:
                self.state.queue(plan.layer, plan.mode, plan.call, {name: Measured(torch.tensor(max(known)))})

    def due(self, plan: Plan) -> bool:
        """True when this call is to be measured in full."""
        if not self.state.full or plan.full_step == self.state.step:
            return False
        plan.full_step = self.state.step
        return True


class EdgeSoftmaxRecorder(TappedRecorder, SoftmaxRecorder):
    """A layer whose softmax is over edges, or over the nodes of every graph."""

    def __init__(self, state: State, name: str, module: nn.Module, places: tuple[str, ...]) -> None:
        super().__init__(state, name, module, "edges", places)
        self._seen = []

    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put the call's tensors into the buffer."""
        self.put(plan, inputs, output, [(one.score.detach(), one.attention.detach()) for one in self._seen])
        if self._seen and self.due(plan):
            rows = _edge_rows(self._seen)
            if rows is not None:
                self.measure(plan, inputs, output, rows)
            self.scales(plan, [one.score for one in self._seen])
        self.forget()

    def scores(self) -> list[Tensor]:
        """Over edges."""
        return [one.score for one in self._seen]

    def shown(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> Iterator[Rows]:
        """With the sources, where the edges that softmax went by are those of an argument."""
        rows = _edge_rows(self._seen)
        if rows is not None:
            yield rows._replace(source=_sources(self.given, rows.target))


class DenseSoftmaxRecorder(SoftmaxRecorder):
    """A module whose own code may attend, see `may_attend`; counted once it has attended.

    ``other`` records the same module as long as it has not attended.
    """

    def __init__(self, state: State, name: str, module: nn.Module, other: LayerRecorder | None = None) -> None:
        super().__init__(state, name, module, "dense")
        self._other = other
        self.counts = False
        self._without = 0
        self._look: Attending | None = None

    def attach(self) -> None:
        """Begin to record: a look at torch's functions while the forward runs, and a hook."""
        self._placed.append(StandIn(self.module, self._new_look).put())
        super().attach()

    def note_unrecognised(self) -> None:
        """Inside a compiled graph alone nobody sees whether the module attends."""
        if not self._without and (self.name, "output") in self.state.compiled.seen:
            self.state.unseen(self.name, f"any scores of {type(self.module).__name__}", _UNTOLD)

    def forget(self) -> None:
        """Drop what an interrupted call left behind."""
        self._look = None

    def _leave(self) -> None:
        for placed in [one for one in self._placed if isinstance(one, StandIn)]:
            placed.remove()
            self._placed.remove(placed)

    def _new_look(self) -> Attending:
        self._look = Attending(linear=not self.counts, products=self.state.full)
        return self._look

    def _after(self, grad: bool, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        look = self._look
        if look is not None and look.error is not None:
            self._leave()
            self.state.error_guard.note(f"the scores of {self.name}", look.error)
        if look is not None and (look.attended or look.fused or look.edges):
            self._recognised()
        if self.counts:
            super()._after(grad, module, args, kwargs, output)
        else:
            self._unrecognised(look)
        self.forget()

    def _recognised(self) -> None:
        self.counts = True
        if self._other is not None:
            self._other.counts = False
            self._other.detach()
            self._other = None

    def _unrecognised(self, look: Attending | None) -> None:
        if look is not None:
            if look.linear.found:
                self.state.linear_attention(self.name, type(self.module).__name__)
            elif look.normalises:
                self.state.normalising.setdefault(self.name)
        self._without += 1
        if self._without >= _NO_ATTENTION:
            self._leave()

    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put the call's tensors into the buffer; scores of fused attention only in a step of the full tier."""
        look = self._look
        if look is None:
            self.put(plan, inputs, output, [])
            return
        due = self.due(plan)
        seen = self._all(look) if due else [_of_attended(one) for one in look.attended]
        over_edges = [(one.score.detach(), one.attention.detach()) for one in look.edges]
        self.put(plan, inputs, output, over_edges + [(score, attention) for score, attention, _ in seen])
        rows = None if not due else _edge_rows(look.edges)
        if due and seen and rows is None:
            rows = as_edges(*seen[0], self._heads)
        if rows is not None:
            self.measure(plan, inputs, output, rows)
        for one in look.edges if due else ():
            gone = None if one.exponential is None else one.exponential.vanished()
            if gone is not None:
                self.state.queue(plan.layer, plan.mode, plan.call, {ATTENTION_VANISHED_SHARE: Measured(gone)})
        if due:
            parts = [one.exponential for one in look.edges if one.exponential is not None]
            self.scales(plan, [one.score for one in parts], look.attended)

    def scores(self) -> list[Tensor]:
        """Those of fused attention nobody keeps."""
        look = self._look
        return [] if look is None else [*(one.score for one in look.attended), *(one.score for one in look.edges)]

    def shown(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> Iterator[Rows]:
        """Of every softmax that weighted values."""
        if self._look is None:
            return
        for one in self._look.edges:
            rows = _edge_rows([one])
            if rows is not None:
                yield rows._replace(source=_sources(self.given, rows.target))
        for seen in self._all(self._look):
            yield as_edges(*seen, self._heads, None)

    @property
    def _heads(self) -> int | None:
        return self.kind.facts(self.name, self.module, 0).heads

    @staticmethod
    def _all(look: Attending) -> list[tuple[Tensor, Tensor, int]]:
        return [*map(_of_attended, look.attended), *map(_of_fused, look.fused)]


def _of_attended(one: Attended) -> tuple[Tensor, Tensor, int]:
    return one.score.detach(), one.attention.detach(), one.axis


def _sources(given: Any, target: Tensor) -> Tensor | None:
    """The other end of the edges among the arguments that have these targets; None where there are no such edges."""
    args, kwargs = given
    for one in (*args, *kwargs.values()):
        if isinstance(one, Tensor) and not one.is_floating_point() and one.layout is torch.strided:
            plain = plain_tensor(one)
            if plain.shape == (2, len(target)):
                for end in (1, 0):
                    if torch.equal(plain[end], target):
                        return plain[1 - end]
    return None


def _of_fused(call: Any) -> tuple[Tensor, Tensor, int]:
    score = product_scores(call.query, call.key, call.mask, call.causal, call.scale)
    return score, fused_softmax(score), score.dim() - 1


def _edge_rows(seen: Sequence[SoftmaxCall | OverEdges]) -> Rows | None:
    """The first softmax of a call that went by an index, its heads side by side, edges that a mask has taken away left out."""
    for one in seen:
        if one.index is not None and one.score.shape[:1] == one.index.shape:
            score, attention = (t.detach().reshape(t.shape[0], -1) for t in (one.score, one.attention))
            size = int(one.index.max()) + 1 if one.index.numel() else 0
            kept = _unmasked(score)
            return Rows(score[kept], attention[kept], one.index[kept], size)
    return None


def _unmasked(score: Tensor) -> Tensor:
    """True (E,) for every edge but those that a large negative number has taken away from all heads of scores (E, H): one that stands apart from the others."""
    kept = (score > MASKED).any(1) | score.isnan().any(1)
    if bool(kept.all()) or not bool(kept.any()):
        return torch.ones_like(kept)
    apart = APART * score[kept].abs().max() < score[~kept].abs().min()
    return kept if bool(apart) else torch.ones_like(kept)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor of arguments or an output, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and not value.is_nested and value.layout is torch.strided:
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors(one)
