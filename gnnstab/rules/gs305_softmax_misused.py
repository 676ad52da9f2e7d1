"""GS305 softmax-misused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gnnstab.errors import NotEvaluable
from gnnstab.records import Finding, Signals
from gnnstab.rules.base import Rule, rule, threshold
from gnnstab.rules.queries import measured, percent

_TWICE = re.compile(r"(log_softmax|softmax) ← softmax|(binary_cross_entropy_with_logits|sigmoid) ← sigmoid")
"""Neighbours in the graph of a loss of which the first takes scores, and the second gives probabilities."""


@rule("GS305", "softmax-misused", cause="masking", severity="error", confidence="high")
class SoftmaxMisused(Rule):
    """A softmax is given what is no score: products with a mask, or the result of another softmax.

    ## What it sees
    In the graph of a forward: a softmax whose scores are multiplied by a tensor of zeros and ones that differs within its rows, and the
    weight that it leaves to the entries at 0. In the graph of the loss: a softmax or sigmoid directly behind another one.

    ## Why it is unstable
    exp(0) is 1, not 0: an entry that was to be masked keeps the weight of a score of 0, and with many of them most of the weight. A
    softmax of probabilities lies between 1 and e: the loss cannot fall below a bound far from 0, and its gradient is weak.

    ## What it looks like
    A loss that stands still above that of a mean over everything; no NaN, attention that is nearly uniform. With a second softmax over
    20 classes the loss ends above 2.

    ## Fix
    `scores.masked_fill(~mask, -torch.inf)` in place of `scores * mask`, with one entry open in every row. Hand the scores to
    `cross_entropy`, or the logarithm of the probabilities to `nll_loss`.

    ## When it is wrong
    Weights that are multiplied by the mask again and divided by their sum are right, and are not reported. Scores of 0 may be meant where the
    factor is no mask.

    ## References
    Vaswani et al. 2017, arXiv 1706.03762: illegal connections are set to −∞ before the softmax. Measured: networks of dense attention.
    """

    weight: float = threshold(0.1, unit="share of the weight", source="heuristic: closed entries have no weight at all")

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for each softmax, and one for the loss."""
        graph = str(signals.context.get("loss_graph") or "")
        if not graph and not signals.find("place.rms"):
            raise NotEvaluable("needs a forward of the model: pass a batch (--model pkg.mod:factory --batch FILE)")
        for signal in measured(signals.find("place.masked_weight")):
            if signal.value > self.weight:
                yield self.finding(
                    f"the softmax behind {signal.layer} leaves {percent(signal.value)} of its weight to entries that a mask multiplies by 0: "
                    "exp(0) is 1. Write scores.masked_fill(~mask, -torch.inf) in place of the product.",
                    limit=self.weight,
                    signal=signal,
                )
        if twice := _TWICE.search(graph):
            second, first = twice[0].split(" ← ")
            yield self.finding(
                f"the loss takes {second} of the result of a {first} ({graph}): it cannot come near 0, and its gradient is weak. Hand it the "
                "scores that the first one is given.",
                severity="warning",
                limit=self.weight,
                name="loss",
                value=float("nan"),
                cause="",
            )
