"""What the numbers in a checkpoint's name say: how far its training was, how good it was, or which training it was."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+|[kKmMB])(?![A-Za-z0-9])|[0-9]+)")
"""``9``, ``1e4``, ``1.5M``, ``100k``; of ``0.9`` two numbers, of which the first is 0."""

_FACTORS = {"k": 1e3, "m": 1e6, "b": 1e9}

_SCORE = re.compile(
    r"acc|accuracy|auc|auroc|bleu|err|error|hits|loss|logloss|mae|map|metric|mrr|mse|nll|perf|perplexity|"
    r"ppl|precision|recall|return|reward|rmse|score|trainloss|valloss"
)
"""Words before a number that tells how good a state was."""

_WHICH = re.compile(
    r"client|cv|dim|dropout|exp|experiment|fold|heads|hidden|kfold|layers|lr|member|rank|repeat|replica|"
    r"run|seed|split|trial|wd|worker"
)
"""Words before a number that tells which of several trainings it was; those of an agent are steps as often."""


class Said(NamedTuple):
    """What a name says."""

    order: tuple[tuple[str, float], ...]
    """Words and the numbers behind them that grow as training goes on; other numbers are −1."""

    training: tuple[str, ...]
    """Words, and the numbers that tell trainings apart: equal for two states of one training."""

    plain: tuple[tuple[str, float], ...]
    """Words and all numbers."""


def said(name: str) -> Said:
    """Take a file's name apart. ``_9`` comes before ``_10``, ``500k`` before ``1M``, ``5e3`` before ``1e4``."""
    parts = _NUMBER.split(name)
    order, training, plain = [], [], []
    word, inside = "", ""
    for text, number, after in zip(parts[::2], [*parts[1::2], ""], [*parts[2::2], ""], strict=True):
        # In ``acc@1=76`` the word stands before the first number; both numbers of ``0.8`` mean the same.
        letters = re.findall(r"[a-z]+", text.lower())
        word = letters[-1] if letters else word if text in ("=", "@", ".") else ""
        value = _value(number)
        kind = inside if inside and text == "." else _kind(word, number, after)
        inside = kind if after == "." else ""
        order.append((text, -1.0 if kind else value))
        training += [text, number if kind == "which" else ""]
        plain.append((text, value))
    return Said(tuple(order), tuple(training), tuple(plain))


def _kind(word: str, number: str, after: str) -> str:
    """``score``, ``which``, or ``""`` for a number that may count steps."""
    fraction = number == "0" and after == "." and not re.fullmatch("v|version|ep|epoch|step", word)
    if _SCORE.fullmatch(word):
        return "score"
    # Rates have other names, too.
    if _WHICH.fullmatch(word) or "e-" in number.lower():
        return "which"
    return "score" if fraction else ""


def _value(number: str) -> float:
    """Its value; −1 of none."""
    if number[-1:].lower() in _FACTORS:
        return float(number[:-1]) * _FACTORS[number[-1].lower()]
    # Whole numbers stay exact, as times with microseconds must.
    return int(number) if number.isdecimal() else float(number) if number else -1.0
