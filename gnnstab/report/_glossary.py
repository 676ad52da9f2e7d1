"""The words of a report that are no rule, cause, fix or signal, in everyday words."""

from __future__ import annotations

from collections.abc import Mapping

_ENTROPY = (
    "How evenly a target spreads its attention over its neighbours, as a fraction of ln(in-degree): 1 is uniform, 0 is "
    "all weight on one neighbour. A mean over targets with two neighbours or more."
)
_ROOT = "A symptom was measured, and it was shown or inferred that it comes from here: change this first."
_ADVICE = "Well-known advice that would not help this network, or would harm it: the report says which, and the number that shows it."
_LOGIT = "The number of one edge and head that goes into the softmax, before it is made a weight; also called a score."
_FORMAT = "How many times larger the largest number may become before the format of the run (65 504 in fp16) overflows."

GLOSSARY: Mapping[str, str] = {
    "stable": "Attention was seen on your data, and nothing at warning or above was found.",
    "nothing found": "Nothing at warning or above, but something was not seen; the report says what, and what to pass.",
    "unstable": "A warning or an error about the model.",
    "not evaluable": "It could not be judged with what was given; the reason says what to pass.",
    "root cause": _ROOT,
    "root": _ROOT,
    "cause": "What brings a symptom about. A line `cause` names the root cause, or, with the word before it, one that is contributing.",
    "cause not established": "No suspect was shown to be the root of the symptom; what contributes to it is named all the same.",
    "suspect": "What may be behind a symptom, until undoing it on a copy, or steps, say whether it is: root cause, contributing, or neither.",
    "contributing": "Makes a measured symptom worse, or follows from the root cause itself.",
    "present": "The configuration is so, and no symptom points to it: nothing to do.",
    "absent": "It was looked at, and is not so.",
    "seen directly": "A rule saw the cause itself, such as NaN in the data or a parameter without a gradient.",
    "undone on a copy": "The suspect was taken away on a copy of your model, and the symptom was measured again.",
    "fits the numbers": "The mechanism fits what was measured, and nothing could be tried on a copy.",
    "share": "How much of the way back to the healthy band undoing a suspect goes: from 50 % on it is the root.",
    "healthy band": "The side of its limit on which a number raises no finding.",
    "confirmed": "On a copy the number crossed its limit with margin, nothing else fired, and a short training was not worse.",
    "no-effect": "On a copy the number did not move.",
    "made-worse": "On a copy the number, another rule or the short training got worse.",
    "inconclusive": "The trainings do not tell. More batches (a list or a DataLoader), more seeds or more steps may.",
    "not-tested": "The fix was not tried; `diagnose --verify` or `gnnstab verify` tries it.",
    "entropy": _ENTROPY,
    "attention entropy": _ENTROPY,
    "one-hot": "A target and head whose entropy lies below 0.1: one neighbour takes nearly all the weight.",
    "logit": _LOGIT,
    "logits": _LOGIT,
    "message rms": "The usual size of the messages that a layer adds up at a node; dropout makes it larger in training.",
    "not run": "Checks that could not judge, for what they need was not there: no sign of health. `-v` tells what each needs.",
    "seen in steps on a copy": "Steps of your optimizer on a copy show the symptom; no cause was undone.",
    **{f"w{number}": _ADVICE for number in range(1, 13)},
    "score": _LOGIT,
    "in-degree": "The number of edges that point to a node: so many neighbours share its attention.",
    "rms": "Root mean square: the usual size of a number of a tensor, sqrt(mean(x²)).",
    "headroom": _FORMAT,
    "fp16 room": _FORMAT,
    "spread": "How far numbers lie apart: their standard deviation. That of the scores of one target says how sharp its softmax is.",
    "saturated": "A softmax, sigmoid or tanh at its end: a change of what goes in hardly changes what comes out, and the gradient is nearly 0.",
    "target": "The node that edges point to: it weighs the messages of its neighbours against each other.",
    "head": "One of the parallel attentions of a layer; a report counts them from 0.",
    "stage": "The place in a layer where a number was seen, in the order of computation: input, query, key, value, edge, score, attention, aggregate, skip, gate, output; then gradient, weight and loss.",
    "identity path": "A way around a layer on which its input is added to its output unchanged (h = h + conv(h)), or by a skip weight.",
    "full measurement": "A step in which attention, gradients and weights are measured in whole; between them, only sizes and the largest scores are.",
    "light measurement": "A step in which only sizes, the largest scores and what is not finite are recorded.",
    "on a copy": "In a copy of your model, with its random state; your model, optimizer and data stay as they are.",
    "trial steps": "Steps of your optimizer on a copy of model and batch, as a training would take them; nothing of yours is moved.",
    "calm": "Of a rate: trial steps at it raise the loss at no time. It is calm on the batch that was tried.",
    "twin": "The same model drawn anew with another seed, with and without a fix, so that luck is not taken for the fix.",
    "synthetic": "Of inputs and graphs that the tool makes where no batch is given: they stand for your data in size and in-degree alone.",
    "note": "Worth knowing, and nothing to mend: it changes no verdict and fails no check.",
    "blind": "Attention that was there and not measured; the report names it with the reason, and judges nothing by it.",
    "not applicable": "The rule concerns another kind of model, depth or run.",
    "input of rms 1": "The layer is run once more with its input scaled to size 1: what stays sharp is sharp by the weights.",
    "gain": "The factor by which a layer makes numbers larger; 1 keeps their size.",
}
"""Word, in lower case → what it means."""


HOW = {
    "observed": "seen directly", "undone": "undone on a copy", "tried": "seen in steps on a copy", "inferred": "fits the numbers, not tried",
}  # fmt: skip
"""How a cause is known → its words."""
