"""GS305 softmax-misused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import (
    PLACE_RETAKEN_SOFTMAX,
    PLACE_SIGNED_DIVISOR,
    PLACE_TORN_ROWS,
    PLACE_UNIFORM_WEIGHTS,
)
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.learned import has_learned
from gnnstab.rules.queries import first_loss, measured, names, percent

_TWICE = re.compile(
    r"(log_softmax|softmax) ← (softmax|sigmoid|tanh)\b|(binary_cross_entropy_with_logits|sigmoid) ← sigmoid"
)
"""Neighbours in the graph of a loss of which the first takes scores, and the second gives probabilities."""

_PICKS = re.compile(r"(?<=← )(?:index|index_select|select|slice|gather) ← ")
"""Operations that pick rows and leave their numbers as they are."""


def taken_twice(signals: Signals) -> tuple[str, str] | None:
    """The two neighbours in front of the loss of which the later takes scores and is given probabilities, the later first; None where none do."""
    found = _TWICE.search(_PICKS.sub("", str(signals.context.get("loss_graph") or "")))
    if found is None:
        return None
    second, first = found[0].split(" ← ")
    return second, first


@rule("GS305", "softmax-misused", cause="masking", severity="error", confidence="high")
class SoftmaxMisused(Rule):
    """A softmax is given what is no score, or a mask that does not mask: products, small or large constants, the wrong half.

    ## Why it matters
    exp(0) is 1: an entry that was to be masked keeps the weight of a score of 0, and many of them take most of it. A
    mask the wrong way round leaves padding alone. A softmax of probabilities lies between 1 and e, so that the loss
    stands still (above 2 for 20 classes) while nothing is NaN.

    ## What to do
    Write `scores.masked_fill(~mask, -torch.inf)` in place of `scores * mask`, with one entry open in every row.
    `key_padding_mask` of `nn.MultiheadAttention` is True where a key is to be ignored, a boolean `attn_mask` of
    `scaled_dot_product_attention` True where it is to be read. Hand scores to `cross_entropy`, or the logarithm of
    probabilities to `nll_loss`.

    ## How it is measured
    In the graph of a forward and of the loss:

    - scores multiplied by zeros and ones that differ within a row, replaced by a constant amid or above them, or
      lowered by a small constant (−1 for −∞), and the weight that those entries keep; a constant that a mask writes
      into the output above everything else, where the loss is of its size;
    - attention that closes the keys that differ and leaves open those that hold the same, as padding does, or reads
      what a mask of the batch closes by its name (`blocked`, `padding`, or all but `adj`, `valid`, `edge_index`); the
      weight of real rows on padding that a mask or lengths tell;
    - weight that a mask takes away behind the softmax where nothing divides by the rest; weights of a target that do
      not sum up to 1, since the softmax runs over another axis or end than the sum with the values, or one number
      shrinks them;
    - weights that are equal for all neighbours of every target, with other numbers in all parameters too, while the values differ;
    - rows divided by a sum of their own weights, as in linear attention, that takes both signs and comes near 0;
    - a softmax or sigmoid directly behind another one, or a log_softmax of a tanh, in front of the loss; attention
      weights that a second softmax is taken of, over the same keys, before they weigh the values;
    - dense attention whose view moves the axis of the nodes without a transpose, so that rows mix several.

    ## When it is silent
    Weights multiplied by the mask again and divided by their sum, constants that limit the scores as a clamp does,
    weights that share out rows among clusters, a softmax for each relation. Scores of 0 may be meant where the factor
    is no mask.

    ## Sources
    Vaswani et al. 2017, arXiv 1706.03762: illegal connections are set to −∞ before the softmax. Measured: networks of
    dense attention.
    """

    weight: float = threshold(0.1, unit="share of the weight", source="heuristic: closed entries have no weight at all")

    lost: float = threshold(
        0.3, unit="share of the weight", source="heuristic: padding that is masked too late takes .4"
    )
    no_mean: float = threshold(2.0, unit="sum of weights", source="derived: twice a mean; weights of a target sum to 1")
    square: float = threshold(1.2, unit="sum of weights", source="derived: 1 for uniform weights alone, over any axis")
    kept: float = threshold(0.5, unit="sum of weights", source="derived: less than half of every mean is left")
    wrong_way: float = threshold(
        0.9, unit="share of sets", source="derived: nearly every set has nothing but padding left"
    )
    far: float = threshold(1000.0, unit="above the output", source="heuristic: no score is that far from the others")
    of_the_loss: float = threshold(
        0.01,
        unit="× the constant",
        source="derived: cross-entropy is the distance to the largest score, in one row of a hundred or more",
    )

    near_zero: float = threshold(
        10.0, unit="median over smallest", source="derived: a row is that much larger than the median one"
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each softmax, mask of an output and mask the wrong way round, and one for the loss."""
        graph = str(signals.context.get("loss_graph") or "")
        if not graph and not signals.find("place.rms"):
            raise NotEvaluable("needs a forward of the model: pass a batch (--model pkg.mod:factory --batch FILE)")
        for signal in measured(signals.find("place.masked_weight")):
            if signal.value > self.weight:
                what = _masked(signal.detail)
                yield self.finding(
                    f"the softmax behind {signal.layer} leaves {percent(signal.value)} of its weight to entries {what}",
                    severity="warning" if "added" in signal.detail else "error",
                    limit=self.weight,
                    signal=signal,
                )
        yield from self._behind(signals)
        yield from self._wrong_way(signals)
        yield from self._wrong_sums(signals)
        for signal in measured(signals.find(PLACE_SIGNED_DIVISOR)):
            if signal.value > self.near_zero:
                yield self.finding(
                    f"behind {signal.layer} rows are divided by a sum of their own weights that takes both signs ({percent(float(signal.detail.get('rarer', 0.0)))} of "
                    f"these divisors have the rarer one) and passes through 0: the smallest is {signal.value:.3g} times closer to it than the median, and "
                    "its row that much larger. Take weights that are positive: a softmax, or a feature map above 0 such as elu(x) + 1.",
                    limit=self.near_zero,
                    signal=signal,
                    cause="normalization-misuse",
                )
        for signal in measured(signals.find(PLACE_TORN_ROWS))[:1]:
            before, after = (tuple(signal.detail.get(key, ())) for key in ("before", "after"))
            yield self.finding(
                f"a view behind {signal.layer} turns {before} into {after}: it moves the axis of {signal.value:.0f} nodes without a transpose, so that "
                "every row holds numbers of several nodes, and a mask closes other rows than it is meant for. Split the last axis first, "
                "x.view(sets, nodes, heads, width).transpose(1, 2), and transpose back before the heads are joined.",
                severity="warning",
                limit=self.weight,
                signal=signal,
            )
        yield from self._retaken(signals)
        yield from self._uniform(signals)
        if twice := taken_twice(signals):
            second, first = twice
            yield self.finding(
                f"the loss takes {second} of the result of a {first} ({graph}): it cannot come near 0, and its gradient is weak. Hand it the "
                "scores that the first one is given.",
                severity="warning",
                limit=1.0,
                name="loss",
                value=2.0,
                unit="× between 0 and 1",
                cause="normalization-misuse",
            )

    def _behind(self, signals: Signals) -> Iterator[Finding]:
        """Weight on padding, and weight that a mask takes away too late."""
        for signal in measured(signals.find("place.padding_weight")):
            mask = signal.detail.get("mask")
            if signal.value > self.weight and mask is not None:
                yield self.finding(
                    f"the softmax behind {signal.layer} gives {percent(signal.value)} of its weight to rows that are padding by `{mask}` "
                    f"({percent(float(signal.detail['share']))} of all rows are): no mask closes them. Write "
                    "scores.masked_fill(padding, -torch.inf), or pass key_padding_mask.",
                    severity="error" if signal.value > self.wrong_way else "warning",
                    limit=self.weight,
                    signal=signal,
                )
        for signal in measured(signals.find("place.lost_weight")):
            if signal.value > self.lost:
                yield self.finding(
                    f"a mask takes {percent(signal.value)} of the weight of the softmax behind {signal.layer} away after the softmax, and nothing "
                    "divides by the rest: every mean over neighbours shrinks to that part. Close the scores before the softmax: "
                    "scores.masked_fill(~mask, -torch.inf).",
                    limit=self.lost,
                    signal=signal,
                )

    def _retaken(self, signals: Signals) -> Iterator[Finding]:
        """Softmaxes of weights."""
        for signal in measured(signals.find(PLACE_RETAKEN_SOFTMAX)):
            yield self.finding(
                f"the scores behind {signal.layer} go through two softmaxes: the second one is given weights between 0 and 1, and so no neighbour "
                f"gets more than e times the weight of another (here {signal.value:.2g} times at most), however far apart the scores lie. Take one softmax.",
                severity="warning",
                limit=1.0,
                signal=signal,
                cause="normalization-misuse",
            )

    def _uniform(self, signals: Signals) -> Iterator[Finding]:
        """Softmaxes whose weights no parameter moves."""
        # Of masked entries that win the open ones say nothing.
        masked = {s.layer for s in signals.find("place.masked_weight") if s.value > self.weight}
        for signal in [s for s in measured(signals.find(PLACE_UNIFORM_WEIGHTS)) if s.layer not in masked]:
            makers = names([str(name) for name in signal.detail.get("makers", ())], 4)
            yield self.finding(
                f"the attention weights of the softmax behind {signal.layer} are uniform at all {signal.value:.0f} targets with several neighbours, "
                f"and stay so with other numbers in every parameter: they are a mean, and {makers}, of which the scores are made, decide nothing. "
                "Look at what exp is given (score - maximum, not the maximum), at scores of the target alone, and at what rounds or replaces them.",
                severity="info" if has_learned(signals) else "warning",
                limit=1.0,
                signal=signal,
                cause="normalization-misuse",
            )

    def _wrong_sums(self, signals: Signals) -> Iterator[Finding]:
        """Softmaxes over another axis, or over other edges, than the sum behind them."""
        for signal in measured(signals.find("place.weight_sum")):
            over, edges = (
                str(signal.detail.get("over", "another axis")),
                "Group the softmax by the index that the messages are summed up by",
            )
            small = signal.value < self.kept
            if over == "a number" and small:
                what = f"multiplied by {signal.value:.3g} before they weigh the values"
                fix = "A scale as 1/√d belongs to the scores: softmax(scores / d ** 0.5)"
            elif signal.detail.get("messages") and (small or signal.value > self.no_mean):
                what, fix = f"taken over {over}, of all edges", f"{edges}: torch_geometric.utils.softmax(scores, index)"
            elif over == "edges" and signal.value > self.no_mean:
                what, fix = "taken over edges that do not end at the same target", f"{edges}: edge_index[1]"
            elif (
                over not in ("edges", "a number")
                and "messages" not in signal.detail
                and (small or signal.value > self.square)
            ):
                what, fix = (
                    f"taken over {over}, while the sum runs over the keys of a target",
                    "Write softmax(dim=-1), over the keys",
                )
            else:
                continue
            yield self.finding(
                f"the attention weights of the softmax behind {signal.layer} are {what}: those of a target sum up to {signal.value:.3g} in place of "
                f"1, so that {'next to nothing of the messages is left' if small else 'the sum grows with the neighbourhood'}. {fix}.",
                severity="warning" if over == "a number" else "error",
                limit=self.kept if small else self.no_mean,
                signal=signal,
                cause="normalization-misuse",
            )

    def _wrong_way(self, signals: Signals) -> Iterator[Finding]:
        """Masks that leave open what they were to close."""
        for signal in measured(signals.find("place.closed_content")):
            if signal.value > self.wrong_way:
                if name := signal.detail.get("mask"):
                    yield self.finding(
                        f"the attention behind {signal.layer} reads what `{name}` of the batch closes, and nothing else: its mask is the wrong way "
                        "round. A boolean attn_mask of scaled_dot_product_attention is True where a key is read, one of "
                        "torch's own attention module where it is not.",
                        limit=self.wrong_way,
                        signal=signal,
                    )
                    continue
                yield self.finding(
                    f"the attention behind {signal.layer} closes the keys that differ and leaves open those that all hold the same, in "
                    f"{percent(signal.value)} of its sets: its mask is the wrong way round, and nothing but padding is read. "
                    "key_padding_mask is True where a key is to be ignored.",
                    severity="error",
                    limit=self.wrong_way,
                    signal=signal,
                )
        loss = first_loss(signals)
        for signal in measured(signals.find("place.filled_output")):
            if signal.value > self.far and loss > self.of_the_loss * signal.value:
                yield self.finding(
                    f"a mask fills {percent(float(signal.detail['share']))} of the output with a constant that lies {signal.value:.3g} above every "
                    f"other entry, and the loss is of its size ({loss:.3g}): a softmax gives masked entries all the weight. "
                    "Write masked_fill(~mask, -torch.inf).",
                    severity="error",
                    limit=self.far,
                    signal=signal,
                )


def _masked(detail: Mapping[str, Any]) -> str:
    """How a mask failed to close entries, and what to write in its place."""
    if "added" in detail:
        return (
            f"whose scores a mask lowers by {-float(detail['added']):.3g} alone: exp({float(detail['added']):.3g}) is not 0. "
            "Write scores.masked_fill(~mask, -torch.inf)."
        )
    if detail.get("constant"):
        return "whose scores a mask replaces by a constant: it must lie far below all scores. Write scores.masked_fill(~mask, -torch.inf)."
    return (
        "that a mask multiplies by 0: exp(0) is 1. Write scores.masked_fill(~mask, -torch.inf) in place of the product."
    )
