"""The words of a report that are no rule, cause, fix or signal, in everyday words."""

from __future__ import annotations

from collections.abc import Mapping

_ENTROPY = (
    "How evenly a target spreads its attention over its neighbours, as a fraction of ln(in-degree): 1 is uniform, 0 is "
    "all weight on one neighbour. A mean over targets with two neighbours or more."
)
_LOGIT = "The number of one edge and head that goes into the softmax, before it is made a weight; also called a score."
_FORMAT = "How many times larger the largest number may become before the format of the run (65 504 in fp16) overflows."

GLOSSARY: Mapping[str, str] = {
    "stable": "Attention was seen on your data, and nothing at warning or above was found.",
    "nothing found": "Nothing at warning or above, but something was not seen; the report says what, and what to pass.",
    "unstable": "A warning or an error about the model.",
    "not evaluable": "It could not be judged with what was given; the reason says what to pass.",
    "root cause": "A symptom was measured, and it was shown or inferred that it comes from here: change this first.",
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
    "score": _LOGIT,
    "in-degree": "The number of edges that point to a node: so many neighbours share its attention.",
    "rms": "Root mean square: the usual size of a number of a tensor, sqrt(mean(x²)).",
    "headroom": _FORMAT,
    "input of rms 1": "The layer is run once more with its input scaled to size 1: what stays sharp is sharp by the weights.",
    "gain": "The factor by which a layer makes numbers larger; 1 keeps their size.",
}
"""Word, in lower case → what it means."""
