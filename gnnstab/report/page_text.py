"""Texts of the page: numbers with real signs, names as words, hostile text in one line, rule pages as paragraphs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

from gnnstab.records import SIGNALS
from gnnstab.report import _rulebook as rulebook
from gnnstab.report.escape import ending, shorten, visible
from gnnstab.report.faces import plain
from gnnstab.report.numbers import number

_SIGNS = str.maketrans({"-": "−"})
_WORDS = {"nan": "NaN", "inf": "∞", "-inf": "−∞"}

PAGE_PARTS = ("Why it matters", "When it is silent")
"""The headings of a rule's page that a reader of findings needs."""


def short(value: float | None) -> str:
    """`number` with a minus sign and an infinity sign in place of their ASCII stand-ins."""
    text = number(value)
    return _WORDS.get(text, text.translate(_SIGNS))


def sentence(text: str) -> str:
    """``text`` with a capital first letter, unless its first word is a name in code such as ``fp16`` or ``lr=``."""
    first = text.split(" ", 1)[0].rstrip(",;")
    is_word = first.replace("-", "").isalpha() and first.islower() and first != "gnnstab"
    return text[:1].upper() + text[1:] if is_word else text


def meaning(signal: str) -> str:
    """What a signal stands for, from the vocabulary; the name itself for a stranger."""
    return plain(SIGNALS[signal].meaning) if signal in SIGNALS else signal


def clip(text: object, longest: int) -> str:
    """``text`` in one line with nothing hidden in it, and shortened in its middle where it has no end."""
    return shorten(visible(str(text)), longest)


def prose(text: str, longest: int = 900) -> Markup:
    """A message as a sentence, what stands in backticks as code."""
    shown = sentence(ending(visible(text), longest))
    return _code(f"{shown}." if shown[-1:].isalnum() else shown)


def fix_title(name: str) -> str:
    """The title of a fix, or its name in words where no such fix is installed."""
    from gnnstab.fixes import FIXES

    return sentence(FIXES[name].title) if name in FIXES else sentence(visible(name).strip())


def fix_cost(name: str) -> str:
    """What a fix costs, ``""`` where that is not known."""
    from gnnstab.fixes import FIXES

    return FIXES[name].cost if name in FIXES else ""


def rule_page(code: str) -> Iterator[tuple[str, Markup]]:
    """(heading, paragraphs) of those parts of a rule's page that help to read its findings."""
    parts = re.split(r"^## (.+)$", rulebook.page(code), flags=re.MULTILINE)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    for heading in PAGE_PARTS:
        if told.get(heading, "").strip():
            yield heading, _paragraphs(told[heading])


def _paragraphs(text: str) -> Markup:
    """Blocks of text as paragraphs, `` `code` `` and ``*stress*`` in them as elements; everything else is text."""
    blocks = (str(_code(" ".join(block.split()))) for block in text.strip().split("\n\n"))
    stressed = (re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", block) for block in blocks if block)
    return Markup("").join(Markup("<p>{}</p>").format(Markup(block)) for block in stressed)


def _code(text: str) -> Markup:
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
