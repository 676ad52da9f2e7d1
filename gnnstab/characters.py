"""Text that is shown: characters that no one sees, or that turn a line around, as escapes, and amounts with their nouns."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_SHAPELESS_RANGES = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_SHAPELESS = frozenset(
    {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}.union(
        *(range(first, last + 1) for first, last in _SHAPELESS_RANGES)
    )
)
"""Letters and marks that are drawn as nothing, so that two names that differ look alike."""

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")


def is_hidden(character: str) -> bool:
    """True for control, direction, zero-width, private, unassigned and shapeless characters, and lone surrogates."""
    return unicodedata.category(character) in _INVISIBLE or ord(character) in _SHAPELESS


def as_escape(character: str) -> str:
    r"""The character as it is written in Python's source: ``\x1b``, ``\u202e``, ``\U000e0041``."""
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shown(text: str, kept: str = "") -> str:
    """The text with its hidden characters as escapes, also those that end a line; those in ``kept`` stay."""
    return "".join(c if c in kept else _SHORT.get(c) or (as_escape(c) if is_hidden(c) else c) for c in text)


def counted(amount: float, noun: str, one: str = "", more: str = "") -> str:
    """``1 error``, ``2 entries``; with what follows in both forms: ``1 edge leads``, ``2 edges lead``."""
    single = f"{amount:.0f}" == "1"
    nouns = noun if single else re.sub(r"(?<=[^aeiou])y$", "ie", noun) + "s"
    return f"{amount:.0f} {nouns} {one if single else more}".rstrip()


def as_json(value: Any, indent: int | None = 2) -> str:
    """The value as JSON, hidden characters as escapes of JSON: a program reads the same text, and no terminal obeys it.

    Raises `ValueError` for NaN and Inf, which JSON does not know.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return _BEYOND_ASCII.sub(lambda match: json.dumps(match[0])[1:-1] if is_hidden(match[0]) else match[0], text)
