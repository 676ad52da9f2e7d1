"""GS609 learning-hindered."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gnnstab.errors import NotApplicable
from gnnstab.records import Finding, Signal, Signals
from gnnstab.records.vocabulary import (
    LOSS,
    LOSS_OVER_ZERO,
    OPTIMIZER_BY_HEART,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_UNDONE,
    OPTIMIZER_UNSEEN,
)
from gnnstab.rules._stacks import said, said_of_half
from gnnstab.rules.base import Rule, rule, threshold

_ELSEWHERE = ("no-residual", "normalization-misuse")
"""Causes whose own rules read the same signal: GS103 and GS106."""

_ADVICE = {
    "unsuitable-init": "Leave these weights to their layers' reset_parameters, and draw those of own layers with a deviation of 1/√(number of inputs).",
    "dead-units": "Use LeakyReLU, or reset the bias in front of it.",
    "sum-aggregation": "Use mean aggregation, and add a term of the node itself (h + lin_root(x)).",
    "attention-explosion": "Divide the scores by √d, or by the spread that they begin with.",
    "indistinguishable-nodes": "Give these nodes features of their own, or a row each of an embedding.",
    "feature-scale": "Give it in a larger unit (days for seconds), or subtract its mean and divide by its standard deviation, in front of the encoder.",
    "active-clamp": "Widen its limits, or take it away.",
    "never-updated-parameter": "Wrap what is to be learned in nn.Parameter, in __init__ and before the optimizer is made; register_buffer says of the rest that it stays.",
    "weight_decay": "Lower the decay: 1e-2 is usual where it is decoupled, else 5e-4.",
    "learning-rate": "Lower the rate to that, or warm up to it over some hundred steps.",
    "saturated-gate": "Let the bias of the gate begin where it is open, at 1 or 2.",
    "oversmoothing": "Mix the first state into each round (h = 0.8 * conv(h) + 0.2 * first), or take fewer rounds.",
    "no-residual": "Give the layer such a term (root_weight=True, self-loops, conv(x) + lin(x)).",
    "masking": "Look whether the layer takes the mask, and which way round: turn it with ~, or swap what is kept and what is left out.",
    "taking that mask away": "Leave it out: the adjacency, or a mask of padding, says what a node may see.",
    "normalization-misuse": "Normalise each column over the nodes (BatchNorm, or constants of the training set) instead of each row, or normalise behind a wider layer.",
}


@rule("GS609", "learning-hindered", cause="", severity="warning", confidence="high")
class LearningHindered(Rule):
    """The model hardly learns as it is, and learns once one thing about it is undone.

    ## Why it matters
    Numbers may be finite everywhere while nothing can be learned; what is in the way shows by being taken away. With
    rows of weights that are all alike 30 steps bring the loss from 4.1 to 1.05, at ten times the rate to .76, drawn
    anew to .0065.

    ## What to do
    Undo for good what was undone on the copy. `gnnstab verify` tries the fix over seeds.

    ## How it is measured
    With optimizer and loss, in a run at its end where the loss has hardly fallen: 30 steps on a copy lower the loss of
    one batch by less than e², at a tenth, a third, three and ten times the rate by less than e³. Then each suspect is
    undone on a copy of its own; the one that gets furthest is named when it lowers the loss by a further factor e and
    more than half of what it reaches is its own:

    - weights more than three times off what their layer draws, or whose rows are all alike, drawn anew (queries and
      keys of torch's own attention count as scores);
    - ReLUs with channels that are closed on all rows let a part of what is negative through; sums are divided by the
      number of their terms; scores that spread by more than 1 within a target are softened; nodes of a kind that all
      come with one vector get one each; plain tensors of modules, neither parameter nor buffer, become parameters;
    - sigmoids and tanhs that multiply and are below 0.1 in the mean get a mean of 1.5 to work on; modules whose own
      matrices make what they are given more than twice as large, and 30 times in all, are scaled to a gain of 1;
    - rounds of one layer that bring the differences between nodes below a tenth of what they were, and 5 % of their
      size, get a fifth of the first state each, where the loss falls by less than e;
    - clamps with an upper limit let everything through (e further than at any rate); weights do not decay, where the
      loss falls by less than e;
    - where there is none of these, a third or a tenth of the rate, or of the rates of the first steps where a schedule changes it and comes to its largest within 30; of ten times Adam's
      default or more that comes before a deep stack (GS103, GS106), which is how many networks are built.

    Where the loss falls by less than e² and nothing is named, steps for one half of the rows that the loss reads, at
    your rate, a third, three and ten times it, are judged by the loss of all rows, which cannot be learned by heart (a
    further factor e):

    - a term of the node itself in layers over a graph that have none;
    - a mask of edges or scores that the loss does not read the other way round, the edges of a mask left out that
      changes nothing in the output, or a triangular mask over nodes of a graph whose edges lead both ways, where no
      tensor of the batch grows with their number;
    - norms over one or two numbers replaced by norms of each column; the lengths kept by which the forward divides rows
      of the input;
    - sines and cosines whose arguments have a standard deviation of more than 5 periods in every column, brought to 1;
    - nodes of a kind that all come with one vector, where steps for half of the rows gain less than √2 and steps for
      all more than 2.

    ## When it is silent
    Where the model learns, or nothing that is undone helps. What helps to learn one batch need not help on data that
    were not seen.

    ## Sources
    Measured by the user's own optimizer and loss; no reference.
    """

    taken: float = threshold(
        0.5,
        unit="share of the progress",
        source="derived: more than half of what it reaches is its own; measured: right in 23 of 25 programs that reach it, 1 of 186 healthy ones and twins does",
    )

    def check(self, signals: Signals) -> Iterator[Finding]:
        """One finding for what is most in the way."""
        unseen = (*signals.find(OPTIMIZER_UNSEEN), *signals.find(OPTIMIZER_BY_HEART))
        if not unseen and not signals.find(OPTIMIZER_UNDONE) and _learned(signals):
            raise NotApplicable("the loss came down during the run, so that nothing was undone at its end")
        # A warm-up takes what its full rate would do from the first step on.
        constant = signals.kind != "trace" or any(s.detail.get("constant") for s in signals.find(OPTIMIZER_LR_JUMP))
        for signal in signals.find(OPTIMIZER_UNDONE) if unseen else signals.need(OPTIMIZER_UNDONE):
            cause = str(signal.detail.get("cause", ""))
            decays = signal.detail.get("setting") == "weight_decay"
            as_in_run = constant or decays or signal.detail.get("scheduled")
            if cause == "learning-rate" and not as_in_run:
                continue
            if cause and cause not in _ELSEWHERE and signal.value > self.taken:
                yield self._told(cause, said(signal), signal)
        for signal in unseen:
            if signal.value > self.taken:
                yield self._told(str(signal.detail.get("cause", "")), said_of_half(signal), signal)

    def _told(self, cause: str, what: str, signal: Signal) -> Finding:
        layer = str((signal.detail.get("names") or [""])[0])
        setting = str(signal.detail.get("setting", ""))
        advice = (_ADVICE[key] for key in (setting, str(signal.detail.get("words", "")), cause) if key in _ADVICE)
        message = f"{what} {next(advice, '')}".strip()
        return self.finding(message, limit=self.taken, signal=signal, layer=layer, cause=cause)


def _learned(signals: Signals) -> bool:
    """True for a run whose loss fell by a factor e or more below its first and that of an output of zeros, at the end of which nothing is undone."""
    told = [s.detail for s in signals.find(LOSS) if {"best", "start"} <= s.detail.keys()]
    zeros = [float(s.detail["zeros"]) for s in signals.find(LOSS_OVER_ZERO) if "zeros" in s.detail]
    return any(float(one["best"]) <= math.exp(-1) * min(float(one["start"]), *zeros, math.inf) for one in told)
