"""Infinities that a buffer holds on purpose: masks, bounds, best values, log priors, constants."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gnnstab.checkpoint._scan import entries
from gnnstab.checkpoint._tensors import readable


@dataclass(slots=True)
class _Counts:
    """How many entries of a tensor without NaN are −∞, ∞, 0, above 0 (∞ among them), and any."""

    below: int = 0
    above: int = 0
    zero: int = 0
    positive: int = 0
    all: int = 0


def meant(name: str, tensor: Tensor, others: Mapping[str, Tensor], *, masks: bool = True) -> str:
    """What kind of buffer holds these infinities on purpose: a mask, bounds, a value that nothing has improved on yet, a log prior.

    ``""`` for any other tensor, and for one with a NaN. A single row of 0 and −∞ may be a broken bias, and a parameter that was drawn as
    zeros breaks in some entries: without a mask's word, a mask is what closes more than a quarter of the pairs of n and n. An optimizer
    keeps no ``masks``.
    """
    own = name.rpartition(".")[2].lower()
    seen = None if tensor.is_complex() else _counted(tensor)
    if seen is None:
        return ""
    words = set(re.split(r"[^a-z]+", own)) - {""}
    return (
        (_mask(own, tensor, seen) if masks else "")
        or _by_form(tensor, seen)
        or _unseen(name, own, words, seen, others)
        or _by_words(words, seen)
    )


def _counted(tensor: Tensor) -> _Counts | None:
    """None where an entry is NaN."""
    seen = _Counts()
    for part in entries(tensor):
        if bool(torch.isnan(part).any()):
            return None
        seen.below += int((part == -math.inf).sum())
        seen.above += int((part == math.inf).sum())
        seen.zero += int((part == 0).sum())
        seen.positive += int((part > 0).sum())
        seen.all += part.numel()
    return seen


def _mask(own: str, tensor: Tensor, seen: _Counts) -> str:
    if seen.above or seen.below == seen.all or tensor.dim() < 2:
        return ""
    square = tensor.shape[-1] == tensor.shape[-2] and 4 * seen.below > seen.all
    if seen.below + seen.zero == seen.all and (square or _CLOSED.search(own)):
        return "mask of 0 and −∞"
    return "mask of −∞" if own != "bias" and MASK.search(own) else ""


def _by_form(tensor: Tensor, seen: _Counts) -> str:
    """What no weight looks like: edges of bins from −∞ to ∞ in rising order, and distances, 0 from each to itself, ∞ where no way leads."""
    if tensor.numel() > _FORM or not readable(tensor):
        return ""
    if tensor.dim() == 1 and len(tensor) > 2 and seen.below == seen.above == 1:
        return "edges of bins" if bool((tensor[1:] > tensor[:-1]).all()) else ""
    square = tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1] > 1
    positive = seen.above and seen.positive + seen.zero == seen.all
    if square and positive and not tensor.diagonal().any() and torch.equal(tensor, tensor.T):
        return "distances, ∞ where no way leads"
    return ""


def _unseen(name: str, own: str, words: set[str], seen: _Counts, others: Mapping[str, Tensor]) -> str:
    """The bounds of an observer: it keeps two, which see the same; a lone one is told by its words from a factor or a limit."""
    if not words & {"min", "max"} or (seen.below if "max" in words else seen.above) != seen.all:
        return ""
    twin = others.get(name[: -len(own)] + own.replace("max", "MIN").replace("min", "max").replace("MIN", "min"))
    if twin is None:
        unseen = words - {"min", "max"} <= _SCORE
    else:
        bound = math.inf if "max" in words else -math.inf
        unseen = readable(twin) and all(bool((part == bound).all()) for part in entries(twin))
    return "bounds before anything was seen" if unseen else ""


def _by_words(words: set[str], seen: _Counts) -> str:
    """What a name says in all of its words: one that is left over, as in ``low_rank`` or ``best_theta``, may be a weight's."""
    infinite = seen.below + seen.above
    one_sign = not (seen.below and seen.above)
    if words & _BEST and one_sign and (words <= _BEST | _SCORE or seen.all == 1):
        passed = seen.below if words & _FALLS else seen.above if words & _RISES else 0
        return "" if passed else "best value, where an Inf is the start"
    lower, upper = bool(words & _LOWER), bool(words & _UPPER)
    sided = words & (_LOWER | _UPPER) and words & {"low", "lower", "high", "upper", "action", "actions"}
    if (sided or words & _BOUND) and words <= _BOUND | _LOWER | _UPPER | _BOUNDED:
        # A lower bound of ∞ lets nothing through.
        closed = (seen.above if lower and not upper else 0) + (seen.below if upper and not lower else 0)
        return "" if closed else "bounds that an Inf leaves open"
    if words & _UPPER and words & _LIMITED and words <= _UPPER | _LIMITED and seen.above == seen.all == 1:
        return "limit that an Inf leaves open"
    likely = words & _PRIOR or ("log" in words and words & _CHANCE)
    if likely and words <= _PRIOR | _CHANCE | _OF_A_PRIOR:
        # No logarithm of a probability is above 0, and something is possible.
        fits = not seen.positive and (seen.below < seen.all or "zero" in words)
        return "log probabilities, −∞ of what never occurs" if fits else ""
    if words & _INFINITE and words <= _INFINITE | _CONSTANT and one_sign and infinite == seen.all:
        return "constant that is called infinite"
    return ""


_FORM = 1 << 24
"""Entries above which nothing is told by its form."""

_SEEN = frozenset({"val", "value", "running", "seen", "observed", "best", "so", "far"})
MASK = re.compile("mask|causal|alibi|bias$")
"""In the name of what is added to scores."""
_CLOSED = re.compile(
    f"{MASK.pattern}|bias|tril|triu|future|pad|allowed|adj|visib|neighb|attend|forbid|valid|window|band"
)
"""In the name of what only opens and closes pairs."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_BEST = _set("best lowest highest")
_FALLS = _set("loss losses error err mse rmse mae nll cost perplexity ppl min minimum lowest")
_RISES = _set("acc accuracy reward return auc f ap map max maximum highest")
_SCORE = _SEEN | _FALLS | _RISES | _set("valid validation test train dev metric metrics score scores values")
"""Names of values of which the best is kept: the first sink as they become better, the second rise."""

_LOWER = _set("low lower lo min minimum")
_UPPER = _set("high upper hi max maximum")
_BOUND = _set("bound bounds limit limits clip clamp")
_BOUNDED = _set(
    "action actions act obs observation observations state states space box value values val output out input x y "
    "target targets label range reward and"
)
"""What is bounded from one or both sides, and no parameter."""

_LIMITED = _set("norm grad gradient clip temperature temp length edge radius cutoff degree size len")
"""What a single number limits from above, and nobody observes."""

_PRIOR = _set("prior priors logprior logpriors logprob logprobs")
_CHANCE = _set("prob probs probability probabilities freq freqs frequency frequencies p zero")
_OF_A_PRIOR = _set("log class classes label labels type types empirical base marginal y")
_INFINITE = _set("inf infinity neginf")
_CONSTANT = _set("neg minus negative pos plus positive const constant value fill")
