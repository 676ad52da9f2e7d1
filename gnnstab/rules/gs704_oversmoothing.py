"""GS704 oversmoothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import GAIN_VALUE, OPTIMIZER_UNDONE, PLACE_RMS
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.gs203_vanishing_gradient import VanishingGradient
from gnnstab.rules.gs204_exploding_gradient import ExplodingGradient
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.queries import fresh, largest, measured, names, need_depth, need_measured, percent, smallest


@rule("GS704", "oversmoothing", cause="oversmoothing", severity="warning", confidence="low")
class Oversmoothing(Rule):
    """The node states have become alike over the depth of the network.

    ## Why it matters
    Attention averages over neighbours; averaging over and over leaves the mean.

    ## What to do
    `x = x + act(conv(norm(x)))` with weight 1.0, which keeps .34 to .42 at 16 layers. PairNorm keeps the measure at 1
    and proves little.

    ## How it is measured
    ‖X − mean‖/‖X‖ per graph, free of scale, at the output of the last attention layer, and beside that of the input of
    the first; where a path leads around the last layer (a residual, a read-out of all layers), at the model's output
    too. In deep networks, or trained ones of at least 5 layers, a warning. Fresh deep networks without identity path or
    norm, whose gradient neither vanishes nor explodes, get it once half of the differences are gone: Xavier weights at
    16 layers had .013 and did not train in spite of a gradient ratio of .13.

    Whatever the depth, a warning (indistinguishable nodes):

    - nodes that hardly differ from some place on up to an output that has a row for each (of an output for each graph:
      nodes and graphs);
    - inputs that are the same for every node, where the few answers that the edges alone tell apart are given to nodes
      with other targets, or that rounding alone tells apart, as where norms divide what it has left by √eps;
    - layers that are given one row for every node and give one back; one query for all slots of a set; nodes that edges
      join, get one answer, and differ in nothing that the forward is given.

    ## When it is silent
    Nodes without incoming edges and those that hear of them, padded rows and entries that a mask has written over are
    left out. Vanishing gradients bring it along and then explain it; an input whose nodes are alike by its scale alone
    is feature-scale. It is information where a few steps of the optimizer on a copy learn one batch, and on fresh
    weights of fewer layers (a default network trains at 10 from below .01). A task whose answer is one per graph may
    rightly end here: this is the weakest rule of the set.

    ## Sources
    Wu et al. 2023, *Demystifying Oversmoothing in Attention-Based GNNs*, arXiv 2305.16102; on the usual energy measure,
    arXiv 2502.04591 and 2512.09890. Measured: random graphs of degree 8, width 64.
    """

    relative: float = threshold(
        0.05, unit="‖X − mean‖/‖X‖", source="measured: .013 in a network that does not train, .34 in one that does"
    )
    drop: float = threshold(
        0.1, unit="× that of the input", source="heuristic: nine tenths of the differences are gone"
    )
    min_layers: float = threshold(
        5, unit="attention layers", source="measured: no variant matters at 4 layers or fewer"
    )
    fresh_layers: float = threshold(
        12, unit="attention layers", source="measured: at 10 a default network trains from below .01"
    )

    half: float = threshold(
        0.5,
        unit="× that of the input",
        source="measured: Xavier with tanh at 12 to 16 layers without identity path loses .15 to 1.1 in R², gradient ratio .35 to 4",
    )

    alike: float = threshold(
        1e-3,
        unit="‖X − mean‖/‖X‖",
        source="derived: less than the first digits of a float16; .1 and more in networks that train",
    )

    apart: float = threshold(0.1, unit="‖X − mean‖/‖X‖", source="as alike: .1 and more in networks that train")

    digits: float = threshold(
        1e-5, unit="‖X − mean‖/‖X‖", source="derived: a hundred times float32's precision of 1e-7"
    )

    shrinking: float = threshold(
        0.3, unit="value gain", source="derived: half of the smallest initialisation in use, PyG's default of .58"
    )

    shared: float = threshold(
        0.5,
        unit="share of the targets' spread",
        source="derived: half of what is asked for differs among nodes with one answer",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for nodes that cannot be told apart, else one for the stack."""
        same = list(self._indistinguishable(signals)) or list(self._shared_answers(signals))
        yield from same
        if not same:
            yield from self._over_depth(signals)

    def _indistinguishable(self, signals: Signals) -> Iterator[Finding]:
        """The nodes are alike at some place and stay so up to an output that has a row for each of them."""
        found = sorted(measured(signals.find("place.node_difference")), key=lambda s: int(s.detail.get("position", 0)))
        ends = [s for s in found if s.layer == "output"]
        if not ends or largest(ends).value >= self.alike:
            return
        last_apart = max((i for i, s in enumerate(found) if s.value >= self.alike), default=-1)
        hidden = [s for s in found[last_apart + 1 :] if s.layer != "output"]
        # A last layer alone may give every node the same answer: it has not learned anything yet.
        if len(hidden) < 2:
            return
        first = hidden[0]
        alike = {s.layer for s in hidden}
        stack = [one for one in signals.attention_layers if one.identity_path is not True]
        # Nodes that two layers and more left apart, in a stack of them, were smoothed out, however soon that ends in rounding.
        gradually = sum(one.name not in alike for one in stack) >= 2 and not self._shrunk(signals)
        smoothed = last_apart >= 0 and gradually and len(stack) >= self.min_layers
        if last_apart < 0 and (large := self._drowned(signals, first)):
            yield self.finding(
                f"the nodes of a graph are alike up to rounding already in the input `{first.layer}` (they differ by {first.value:.1g} of its size, in "
                f"the output by {largest(ends).value:.1g}): {large}. Standardise the columns with the statistics of the training set.",
                severity="warning",
                limit=self.alike,
                signal=first,
                confidence="high",
                cause="feature-scale",
            )
            return
        where = f"already in the input `{first.layer}`" if last_apart < 0 else f"from {first.layer} on"
        yield self.finding(
            f"the nodes of a graph are alike up to rounding {where} (they differ by {first.value:.1g} of their size, in the output by "
            f"{largest(ends).value:.1g}), so that every node gets the same answer"
            + (f": {len(stack)} attention layers without an identity path have smoothed them out" if smoothed else "")
            + ". Give each node a term of its own: root_weight=True, residual=True, or x = x + conv(x, edge_index).",
            severity="warning",
            limit=self.alike,
            signal=first,
            confidence="high",
            cause=self.cause if smoothed else "indistinguishable-nodes",
        )

    def _drowned(self, signals: Signals, first: Signal) -> str:
        """What the scale of an input hides: columns in which the nodes differ, or their distance from a far-off mean; ``""`` for nothing."""
        apart = first.detail.get("apart")
        if not isinstance(apart, float):
            return ""
        if apart >= self.apart:
            return f"a column that is much larger than the others hides theirs, of which one differs by {apart:.2g} of its size"
        far = any(s.value > FeatureScale.absurd for s in measured(signals.find(PLACE_RMS, layer=first.layer)))
        return "its values lie far from 0 and close to each other" if far and apart > self.digits else ""

    def _shrunk(self, signals: Signals) -> bool:
        """True where the weights make states so small that the biases are all that is left of them."""
        return any(s.value < self.shrinking for s in measured(signals.find(GAIN_VALUE)))

    def _shared_answers(self, signals: Signals) -> Iterator[Finding]:
        """Nodes that start out the same get one of a few answers, and were to get others."""
        for signal in measured(signals.find("place.shared_answers")):
            if signal.value > self.shared:
                answers, rows = signal.detail.get("answers"), signal.detail.get("rows", signal.detail.get("nodes"))
                what = f"what {signal.layer} is given" if signal.detail.get("inside") else f"the input `{signal.layer}`"
                why = f"{what} is the same for every node, and the edges alone tell {rows} rows of the output apart into {answers} answers"
                if signal.detail.get("rounded"):
                    why = f"{what} is the same for every node, and what tells the {rows} rows of the output apart is rounding alone: the last digits of "
                    why += "the parameters move it as far"
                if signal.detail.get("layers"):
                    why = f"what {signal.layer} is given is the same for every node, and so is what the layers that pass messages give back ({rows} rows), "
                    why += "whatever the weights are: they tell nothing of the graph"
                if queries := signal.detail.get("queries"):
                    why = f"the {queries} queries of a set that {signal.layer} is given are one and the same, whatever the weights are, so that all of them "
                    why += f"get one answer ({rows} rows, {answers} answers)"
                if signal.layer == "output":
                    tables = [str(name) for name in signal.detail.get("tables", ())]
                    why = f"all nodes that edges join get the same answer ({rows} nodes, {answers} answers): nothing that the forward is given "
                    why += "tells them apart" + (f", and all look up one row of {names(tables)}" if tables else "")
                yield self.finding(
                    f"{why}: {percent(signal.value)} of the spread of the targets lies among {'them' if queries else 'nodes that are indistinguishable'}. Give "
                    + (
                        "each query a row of its own of a parameter."
                        if queries
                        else "the nodes features of their own, or encodings of their place."
                    ),
                    severity="warning",
                    limit=self.shared,
                    signal=signal,
                    confidence="high",
                    cause="indistinguishable-nodes",
                )

    def _over_depth(self, signals: Signals) -> Iterator[Finding]:
        depth = need_depth(signals, self.min_layers)
        found = need_measured(signals, "smoothness.relative")
        ordered = sorted(signals.attention_layers, key=lambda layer: layer.position)
        last = [s for s in found if s.layer == ordered[-1].name]
        if ordered[-1].beside and (joined := self._ends(signals)):
            last = joined  # What one relation gives is a part of what the nodes get.
        first = measured(signals.find("smoothness.relative_input", layer=ordered[0].name))
        if not last or not first:
            raise NotEvaluable("the node states of the first and the last attention layer were not both recorded")
        end, start = largest([smallest(last), *self._read_out(signals, ordered[-1])]), largest(first)
        collapsed = end.value < self.relative and end.value < self.drop * start.value
        if not collapsed and not (self._bare(signals, depth) and end.value < self.half * start.value):
            return
        learns = [s.detail for s in signals.find(OPTIMIZER_UNDONE) if s.detail.get("learns")]
        counts = (depth >= self.fresh_layers or signals.context.get("trained") is True) and not learns
        does = "" if not learns else (
            f" It learns all the same: {learns[0]['steps']} of your optimizer's steps on a copy{_rate(learns[0])} bring the loss of one batch from "
            f"{learns[0]['first']:.3g} to {learns[0]['best']:.3g}."
        )  # fmt: skip
        yield self.finding(
            f"over {depth} attention layers the differences between the nodes of a graph fall from {percent(start.value)} to "
            f"{percent(end.value)} of their size. Use x = x + act(conv(norm(x))) with weight 1.0.{does}",
            severity="warning" if counts else "info",
            limit=self.relative if collapsed else self.half * start.value,
            signal=end,
        )

    @staticmethod
    def _read_out(signals: Signals, last: LayerFacts) -> list[Signal]:
        """What the model's output tells of its nodes, where a path leads around the last layer to it."""
        return Oversmoothing._ends(signals) if last.identity_path else []

    @staticmethod
    def _ends(signals: Signals) -> list[Signal]:
        """The output, where it has a row for each node."""
        ends = measured(signals.find("place.node_difference", layer="output"))
        return [s for s in ends if s.detail.get("per_node")]

    def _bare(self, signals: Signals, depth: int) -> bool:
        """True for a deep fresh stack that nothing but its gain holds up, with a gradient that looks healthy."""
        layers = signals.attention_layers
        ratios = [s.value for s in measured(signals.find("gradient.ratio"))]
        return (
            depth >= self.fresh_layers
            and fresh(signals)
            and all(layer.identity_path is False and not (layer.norm_before or layer.norm_after) for layer in layers)
            and bool(ratios)
            and all(VanishingGradient.warn_ratio < ratio < ExplodingGradient.warn_ratio for ratio in ratios)
        )


def _rate(learned: Mapping[str, Any]) -> str:
    """At which rate a copy has learned, in words; empty for the own one."""
    return f", at {learned['factor']:.2g} times the rate," if "factor" in learned else ""
