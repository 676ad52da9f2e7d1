"""GS108 graph-norm-hazard."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from gnnstab.characters import counted
from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, LayerFacts, Signals
from gnnstab.records.vocabulary import PLACE_NORM_OVER_NODES, PLACE_PADDED_SPREAD, PLACE_SIZE_RESPONSE
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import largest, measured, names, need_fact, need_layers, percent, stops
from gnnstab.rules.run_losses import ruined

_NORMALISED = re.compile(
    r"log_softmax ← (?:(?:index|index_select|select|slice) ← )?div(?: ← (?!index|select|slice|div)|$)"
)
"""A log_softmax directly behind the division by the norm; a temperature would stand between, and rows may be picked."""


@rule("GS108", "graph-norm-hazard", cause="normalization-misuse", severity="warning", confidence="high")
class GraphNormHazard(Rule):
    """A normalisation over the nodes of a graph is used where it divides by almost nothing.

    ## Why it matters
    It divides each channel by its standard deviation over the nodes of a graph: with one node the output is the bias,
    with two the sign alone, and a nearly constant channel gets its gradient multiplied by up to 1/√eps = 316 (measured:
    single entries × 548). Without `batch` graphs see each other. Scores of C classes whose row has norm R differ by
    R·√(C/(C−1)) at most, so that cross-entropy cannot fall below ln(1 + (C−1)·exp(−that)).

    ## What to do
    `LayerNorm` over the channels instead; or pass `batch`: `norm(x, batch)`. Divide a single column by a constant of
    the training set. Hand scores to the loss as they are, or times a learned temperature.

    ## How it is measured
    Each of these where it is met:

    - GraphNorm, InstanceNorm or PairNorm on a graph of one or two nodes, without `batch` on several graphs, or beside
      an attention layer whose channels do not vary over the nodes;
    - a norm, also one in the model's own code, that takes away the mean over nodes, where what is behind it reads that
      mean alone, as a mean pooling does, or where there is a single node: the gradients of the rows and of their mean
      cancel. And one in front of a pooling that needs the mean, since the targets follow it;
    - a norm behind which all graphs are equally large where the error follows their size or their number of nodes;
    - a BatchNorm trained on batches of one or two rows, or given padded rows so far from the real ones that these
      hardly differ behind it;
    - a LayerNorm over a single number, or over the nodes of a set in place of their channels;
    - values divided by their own size one by one, of which the sign is left; rows of scores brought to one norm before
      a cross-entropy.

    ## When it is silent
    When graphs of one node occur in a test batch only, it is a false alarm.

    ## Sources
    Cai et al. 2020, *GraphNorm*, arXiv 2009.03294 (InstanceNorm-like norms degrade on regular graphs). Measured: graphs
    of 1, 2 and more nodes, constant channels.
    """

    smallest: float = threshold(2, unit="nodes", source="derived: with two nodes a normalised channel is ±1")
    erased: float = threshold(
        0.15, unit="× chance", source="derived: .03 behind GraphNorm and a ReLU, 1 for nodes drawn at random"
    )
    follows: float = threshold(
        0.6, unit="|correlation|", source="heuristic: the mean alone explains a third of the targets"
    )
    constant: float = threshold(
        0.5, unit="share of channels", source="heuristic: half of the channels without variance"
    )

    blind: float = threshold(
        1e-3, unit="× RMS of the output", source="derived: what the eps of a norm lets through at a variance of .01"
    )
    chance: float = threshold(4.0, unit="t", source="derived: one in a thousand for 16 graphs whose error is unrelated")

    spread: float = threshold(
        0.3,
        unit="share of the spread",
        source="derived: half padding, six standard deviations from the real rows; zeros leave more than 1",
    )

    bound: float = threshold(
        0.1, unit="cross-entropy", source="derived: .67 for 4 classes at norm 1; a loss that cannot come near 0"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding per hazard."""
        erased = [*self._erased(signals), *self._over_one(signals), *self._signs(signals), *self._bounded(signals)]
        erased += [*self._padded(signals), *self._sizes(signals), *self._along_nodes(signals)]
        yield from erased
        if erased:
            return
        known = [
            layer for layer in need_layers(signals) if layer.norm_before is not None or layer.norm_after is not None
        ]
        if not known:
            how = "what normalises beside a layer is code, not weights; pass the model and a batch (--model, --batch)"
            need_fact(signals, "norm_before", how)
        normed = [layer for layer in known if _over_nodes(layer)]
        met: Mapping[str, tuple[str, int]] = signals.context.get("norm_smallest", {})
        if not (normed or met or signals.context.get("norm_without_batch")):
            raise NotApplicable("no normalisation over the nodes of a graph")
        yield from self._without_batch(signals)
        yield from self._size(met)
        for layer in normed:
            which = f"{_over_nodes(layer)} at {names(one.name for one in normed)}"
            yield from self._constant(signals, layer.name, which)

    def _erased(self, signals: Signals) -> Iterator[Finding]:
        """The mean of every graph is gone before the pooling, and the targets follow it."""
        told = {signal.layer for signal in stops(signals, "centred")}
        for signal in measured(signals.find("place.graph_difference")):
            follows = float(signal.detail.get("target_follows", 0.0))
            if (
                signal.layer not in told
                and signal.value < self.erased
                and follows > self.follows
                and not ruined(signals)
            ):
                yield self.finding(
                    f"{signal.layer} takes away the mean over the nodes of every graph, and of what is pooled behind it {signal.value:.2g} times "
                    f"the differences of chance is left. The targets follow that mean (correlation {follows:.2f}). Use LayerNorm or BatchNorm "
                    "there, or pool before it.",
                    limit=self.erased,
                    signal=signal,
                )

    def _over_one(self, signals: Signals) -> Iterator[Finding]:
        """A normalisation that is given one number at a time gives back its bias; one of a single row, or in front of a mean, a constant."""
        for signal in stops(signals, "layer_norm"):
            yield self.finding(
                f"{signal.layer} hands no gradient on: this LayerNorm runs over a single entry, so that its output is its bias whatever comes in. "
                f"{counted(signal.value, 'parameter')} in front of it cannot learn. Leave it out, or scale the column by constants of the training set.",
                limit=0.0,
                signal=signal,
            )
        for signal in stops(signals, "centred"):
            who = f"{signal.layer} takes" if signal.detail.get("module") else f"a norm behind {signal.layer} takes"
            yield self.finding(
                f"{who} away the mean over the nodes, and what is behind it reads nothing but that mean (as a mean pooling does, or where there is a "
                f"single node): nothing is left but a constant, and the {counted(signal.value, 'parameter')} in front of it cannot learn. Normalise the "
                "channels of each node instead (LayerNorm), or pool before it.",
                limit=0.0,
                signal=signal,
            )

    def _signs(self, signals: Signals) -> Iterator[Finding]:
        """Values of which a division by their own size leaves the sign."""
        for signal in measured(signals.find("place.normalised_away")):
            what = f"`{signal.layer}` of the batch" if signal.detail.get("input") else f"what {signal.layer} returns"
            yield self.finding(
                f"{what} is divided by its own size one entry at a time (as F.normalize does over a single column): {counted(signal.value, 'entry', 'comes', 'come')} out at "
                "±1, and how large they were is lost. Divide by a constant of the training set instead.",
                severity="warning",
                limit=0.0,
                signal=signal,
            )

    def _padded(self, signals: Signals) -> Iterator[Finding]:
        """Padded rows that fill the statistics of a BatchNorm."""
        for signal in measured(signals.find(PLACE_PADDED_SPREAD)):
            if signal.value < self.spread and signal.detail.get("mask"):
                yield self.finding(
                    f"the statistics of {signal.layer} count padded rows ({percent(float(signal.detail.get('padding', 0.0)))} of all, by "
                    f"`{signal.detail.get('mask')}`), which lie far from the real ones: behind the norm these differ by {percent(signal.value)} of "
                    "what they would alone, and by another share in a batch of other sizes. Normalise the real rows alone: out[mask] = "
                    "norm(h[mask]).",
                    severity="warning",
                    limit=self.spread,
                    signal=signal,
                )

    def _along_nodes(self, signals: Signals) -> Iterator[Finding]:
        """A LayerNorm along the axis of the nodes, with a weight for each place in a set."""
        for signal in measured(signals.find(PLACE_NORM_OVER_NODES)):
            yield self.finding(
                f"{signal.layer} is a LayerNorm over the {signal.value:.0f} nodes of a set, channel by channel, not over the channels of a node: what "
                "all nodes share is taken away, rows of padding count, and each place has a weight of its own. Normalise the last axis "
                "of (sets, nodes, channels).",
                severity="warning",
                limit=0.0,
                signal=signal,
            )

    def _sizes(self, signals: Signals) -> Iterator[Finding]:
        """How large the numbers of a graph are is gone, and what the output lacks is just that."""
        for signal in measured(signals.find(PLACE_SIZE_RESPONSE)):
            follows, graphs = float(signal.detail.get("follows", 0.0)), int(signal.detail.get("graphs", 0))
            beyond_chance = follows * math.sqrt(max(0, graphs - 2)) > self.chance * math.sqrt(
                1 - min(1.0, follows) ** 2
            )
            if signal.value < self.blind and follows > self.follows and beyond_chance:
                told, what = (
                    (
                        "sums over graphs of any number of nodes equally large, and no gradient leads along their size",
                        "many nodes they have",
                    )
                    if signal.detail.get("counts")
                    else (
                        f"all graphs equally large: the output moves by {signal.value:.1g} of its size when the numbers of every second graph are doubled",
                        "large they are",
                    )
                )
                yield self.finding(
                    f"{signal.layer} makes {told}; the error follows how {what} (correlation {follows:.2f}). Divide by constants of the "
                    "training set there, as BatchNorm does.",
                    limit=self.blind,
                    signal=signal,
                )

    def _bounded(self, signals: Signals) -> Iterator[Finding]:
        """Scores of one norm in every row, which cross-entropy is given as they are."""
        for signal in measured(signals.find("place.output")):
            size, columns = float(signal.detail.get("row_norm", math.nan)), int(signal.detail.get("columns", 0))
            if columns < 2 or math.isnan(size) or not _NORMALISED.search(str(signals.context.get("loss_graph") or "")):
                continue
            least = math.log1p((columns - 1) * math.exp(-size * math.sqrt(columns / (columns - 1))))
            if least > self.bound:
                yield self.finding(
                    f"every row of the output is normalised to a norm of {size:.3g} before cross-entropy: over {columns} classes the loss cannot fall "
                    f"below {least:.2g}. Hand it the logits as they are, or times a learned temperature.",
                    severity="warning",
                    limit=self.bound,
                    signal=signal,
                )

    def _size(self, met: Mapping[str, tuple[str, int]]) -> Iterator[Finding]:
        small = {name: kind for name, (kind, nodes) in met.items() if nodes <= self.smallest}
        if small:
            size = min(met[name][1] for name in small)
            effect = "the bias alone" if size <= 1 else "the sign alone"
            batch = all("BatchNorm" in kind for kind in small.values())
            what = "is given batches of" if batch else "meets a graph of"
            unit = "row" if batch else "node"
            yield self.finding(
                f"{'/'.join(dict.fromkeys(small.values()))} {names(small)} {what} {counted(size, unit)}: its output "
                f"there is {effect}. Use LayerNorm instead.",
                limit=self.smallest,
                name="graph.smallest",
                value=size,
                unit="nodes",
            )

    def _without_batch(self, signals: Signals) -> Iterator[Finding]:
        for layer in signals.context.get("norm_without_batch", ()):
            yield self.finding(
                f"{layer}: called without `batch`, so the graphs of one batch are normalised together. Pass batch.",
                limit=0.0,
                name="",
                value=0.0,
                layer=str(layer),
            )

    def _constant(self, signals: Signals, layer: str, which: str) -> Iterator[Finding]:
        found = measured(signals.find("channels.constant_share", layer=layer))
        if found and largest(found).value > self.constant:
            worst = largest(found)
            yield self.finding(
                f"{layer}: {percent(worst.value)} of its input channels do not vary over the nodes; {which} multiplies their gradient by "
                "up to 316. Use LayerNorm instead.",
                limit=self.constant,
                signal=worst,
            )


def _over_nodes(layer: LayerFacts) -> str:
    """Class name of a normalisation over nodes beside the layer, else an empty text."""
    for name in (layer.norm_before or "", layer.norm_after or ""):
        if any(kind in name for kind in ("GraphNorm", "InstanceNorm", "PairNorm", "MeanSubtractionNorm")):
            return name
    return ""
