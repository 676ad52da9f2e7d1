"""GS408 batch-dependence."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    OPTIMIZER_FILLED,
    PLACE_BROADCAST_TARGETS,
    PLACE_FILLED_DIFFERENCE,
    PLACE_ORDER_DIFFERENCE,
)
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import measured, percent

_PASS = "Pass batch to every layer, norm and pooling"


@rule("GS408", "batch-dependence", cause="masking", severity="warning", confidence="high")
class BatchDependence(Rule):
    """The answer for a graph depends on the other graphs of its batch, on its place there, on padding, or on chance.

    ## Why it matters
    Attention, sums and norms over all rows mix what does not belong together, and padding that nothing masks takes
    weight from real rows. In training that is noise which no rate removes; in use, answers that nobody can repeat.
    Positions that are counted along the graphs of a batch tell no two nodes of a graph apart.
    Measured: PyG's GPSConv moves by 1e-7, its SGFormer, normalised over the batch, by 1.6 %, attention over padded rows
    by 8 %, places by the number of the graph by 40 % and more.

    ## What to do
    Pass `batch` to every layer, norm and pooling that takes it. Mask padded rows: `dense, real = to_dense_batch(x,
    batch)` and `key_padding_mask=~real`; take means over real rows only. `F.dropout(x, p, self.training)`, where
    `F.dropout(x)` drops in use as well.

    ## How it is measured
    A copy in evaluation mode runs the smallest graph of a batch (by `batch`, or a set of rows that a mask or lengths
    tell from padding) in its batch and alone. Where the output moves, or the model takes no graph alone, the numbers of
    all other graphs are changed. Where the forward was told of no graphs and something in it asks for `batch`, blocks
    of consecutive nodes that no edge leaves stand for graphs. Where no graph hears another, all stand in the reverse
    order once, and the first module whose own output moves is named. And the same batch twice, from other states of the
    generators. And the batch without rows that fill graphs up (alike, without an edge, told by a boolean tensor of the
    batch, or zeros up to one common size): a warning where the output moves and, with optimizer and loss, as many trial
    steps without them (from 16 graphs on steps for half of these) bring the loss e times lower.

    A squared, absolute or Huber's error whose gradient and value are those of all pairs of outputs and targets of the batch, which
    an output of shape (N, 1) and targets of shape (N,) are spread to, is a warning.

    ## When it is silent
    Graphs may be meant to see each other, as in retrieval within a batch. Sets that are padded to one fixed width with
    one constant, and models that draw random numbers on purpose, are information.

    ## Sources
    PyTorch Geometric, *Advanced Mini-Batching*: graphs of a batch are disjoint. Measured: padded and disjoint batches,
    90 programs that train well move by 2e-6 at most.
    """

    told: float = threshold(
        1e-4, unit="× RMS of the output", source="measured: 2e-6 in programs that keep graphs apart"
    )
    moves: float = threshold(
        0.01, unit="× RMS of the output", source="measured: .016 for SGFormer, .08 for a missing mask"
    )

    gains: float = threshold(
        1.0, unit="ln(loss)", source="derived: a factor of e at the same step, the margin of every trial"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for a graph that ran alone, or one for two passes that differ."""
        yield from (filled := [*self._filled(signals), *self._broadcast(signals)])
        found = measured([*signals.find("place.alone_difference"), *signals.find("place.pass_difference")])
        turned = [s for s in measured(signals.find(PLACE_ORDER_DIFFERENCE)) if s.value > self.told]
        if not found and not filled and not turned:
            if signals.kind == "checkpoint":
                raise NotEvaluable("needs a forward of the model: pass a batch (--model pkg.mod:factory --batch FILE)")
            raise NotEvaluable("no batch of several graphs was seen of which one could run alone")
        yield from map(self._turned, turned)
        for signal in found:
            # A graph alone stands elsewhere than in its batch.
            if signal.name == "place.alone_difference" and any(s.value > self.moves for s in turned):
                continue
            if signal.value > self.told:
                yield self._alone(signal) if signal.name == "place.alone_difference" else self._twice(signal)

    def _filled(self, signals: Signals) -> Iterator[Finding]:
        """Rows that fill graphs up to a common size take part, and steps go further without them."""
        gains = measured(signals.find(OPTIMIZER_FILLED))
        gain = max((signal.value for signal in gains), default=0.0)
        for signal in measured(signals.find(PLACE_FILLED_DIFFERENCE)):
            if signal.value > self.told:
                mask, rows = signal.detail.get("mask"), f"{signal.detail.get('rows')} rows"
                what = (
                    f"{rows} that `{mask}` tells from the real ones"
                    if mask
                    else f"{rows} of zeros that fill the graphs up"
                )
                steps = (
                    f", and the same steps without them bring the loss {math.exp(min(gain, 700.0)):.1f} times lower"
                    if gain > 0
                    else ""
                )
                real = signal.detail.get("real")
                where = f" with real = {real}" if real and real != "real" else ""
                yield self.finding(
                    f"{what} take part: the output moves by {percent(signal.value)} when these are taken out of the batch{steps}. Leave "
                    f"them out of every mean and norm over nodes: global_mean_pool(h[real], batch[real]){where}.",
                    severity="warning" if signal.value > self.moves and gain > self.gains else "info",
                    limit=self.moves,
                    signal=signal,
                )

    def _broadcast(self, signals: Signals) -> Iterator[Finding]:
        """A loss that takes the difference of each row and each target."""
        for signal in measured(signals.find(PLACE_BROADCAST_TARGETS)):
            yield self.finding(
                f"the loss compares every row of the output with all {signal.value:.0f} targets of `{signal.layer}`, and not with its own: its gradient and its value "
                "are those of all pairs, so that the best answer is one and the same number for all rows. An output of shape (N, 1) and targets of shape (N,) are "
                f"spread to (N, N): write loss(output.squeeze(-1), {signal.layer}).",
                severity="warning",
                limit=1.0,
                signal=signal,
                cause="",
            )

    def _alone(self, signal: Signal) -> Finding:
        detail = signal.detail
        heard = float(detail.get("content", 0.0)) > self.told
        mask = str(detail.get("mask", ""))
        of = f"graph {detail.get('graph')} ({detail.get('size')} of up to {detail.get('most')} nodes)"
        if heard:
            look = "Look at the order of the axes (batch_first), and at means over sets" if mask else _PASS
            if detail.get("untold"):
                look = f"The nodes stand in blocks that no edge leaves, as graphs of a batch do, and no `batch` came in. {look}"
            why = f"it moves with the numbers of other graphs: nothing keeps them apart. {look}"
        elif mask:
            why = f"the rows that `{mask}` leaves out take part. Mask them in every attention, mean and norm"
        else:
            why = (
                "it hears no other graph, and follows how far the largest one pads it. Mask padded rows (to_dense_batch says which rows are real), "
                "and count real ones alone"
            )
        way = "without its padding" if mask and not heard else "alone in place of in its batch"
        when = "the numbers of other graphs change" if detail.get("kept") else f"it runs {way}"
        # Sets padded to one width with one constant: the answer is a function of the set.
        harmless = bool(mask) and not heard and not detail.get("varies")
        return self.finding(
            f"the output of {of} moves by {percent(signal.value)} when {when}; {why}.",
            severity="warning" if signal.value > self.moves and not harmless else "info",
            limit=self.moves,
            signal=signal,
        )

    def _turned(self, signal: Signal) -> Finding:
        module = signal.detail.get("module")
        where = f", first in what `{module}` gives" if module else ""
        return self.finding(
            f"the output of a graph moves by {percent(signal.value)} with its place in the batch{where}: the graphs stood in the reverse order, and none "
            "hears another. Something is looked up by the number of the graph, or of the node in the whole batch, so that the nodes of one graph are "
            "all given the same, or other things in every batch. Count positions from 0 along the nodes of each graph: of (graphs, nodes, width), "
            "table[: x.size(1)].",
            severity="warning" if signal.value > self.moves else "info",
            limit=self.moves,
            signal=signal,
            cause="indistinguishable-nodes",
        )

    def _twice(self, signal: Signal) -> Finding:
        return self.finding(
            f"two passes of the same batch in evaluation mode differ by {percent(signal.value)}: the model draws random numbers there, or keeps "
            "a state outside of its buffers. A dropout that is called in forward needs training=self.training.",
            severity="info",
            limit=self.told,
            signal=signal,
            cause="",
        )
