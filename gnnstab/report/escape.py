"""Hostile text made harmless: control characters, direction marks, markup, names without end.

Layer names, paths and messages come from files that anybody may have written. Every format passes them through
`visible` first and then through its own escaping.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gnnstab.characters import as_escape, is_hidden, shown

_PLAIN = re.compile(r"[\x20-\x7e]*")
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")

# Build servers execute log lines that begin, after blanks, with "::command" or hold "##[command]" or "##vso[command]".
_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#\w*\[)")


def visible(text: str, *, newlines: bool = False) -> str:
    """Control, direction, zero-width, private and unassigned characters as escapes that can be seen.

    What a build server would take for a command in its log is broken in the same way.
    With ``newlines=True`` line feeds and tabs stay, for code.
    """
    if not _PLAIN.fullmatch(text):
        text = shown(text, "\n\t" if newlines else "")
    return _COMMAND.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def printed(text: str) -> str:
    """Text for a terminal whose parts were escaped when they were written: what was forgotten is made visible now.

    Colours stay: they are the only sequences that gnnstab writes.
    """
    parts = _COLOUR.split(text)
    parts[::2] = ["".join(as_escape(c) if is_hidden(c) and c not in "\n\t" else c for c in part) for part in parts[::2]]
    return "".join(parts)


def shorten(text: str, longest: int) -> str:
    """The name with its middle left out when it has more than ``longest`` characters; both ends tell layers apart.

    It is cut between its parts, so that no half of a word reads as a name; inside one only where a part has no end.
    """
    if len(text) <= longest:
        return text
    parts, left, right, room = re.split(r"(?=[\s./_-])", text), "", "", longest - 1
    while fitting := [end for end in ((0, -1) if len(left) < len(right) else (-1, 0)) if len(parts[end]) <= room]:
        part = parts.pop(fitting[0])
        left, right = (left, part + right) if fitting[0] else (left + part, right)
        room -= len(part)
    if not right:
        head = min(max(len(left), (longest - 1) // 2), longest - 2)
        left, right = text[:head], text[len(text) - (longest - 1 - head) :]
    return f"{left}…{right}"


def ending(text: str, longest: int) -> str:
    """The beginning of a text that has more than ``longest`` characters, cut behind a word."""
    if len(text) <= longest:
        return text
    words = text[: longest - 1].rpartition(" ")[0]
    return f"{words.rstrip(';:, ')} …" if words else shorten(text, longest)


def name(text: str, longest: int = 60) -> str:
    """A layer name, path or label fit for a line: `visible` and `shorten`."""
    return shorten(visible(text), longest)


def sentence(text: str, longest_word: int = 60, longest: int = 1200) -> str:
    """A message fit for a paragraph: `visible`, with endless words and endless messages shortened."""
    words = re.sub(rf"\S{{{longest_word + 1},}}", lambda match: shorten(match[0], longest_word), visible(text))
    return ending(words, longest)


def code(text: str, longest_line: int = 200, most_lines: int = 60) -> str:
    """Code as it stands, with hidden characters shown, and cut where it has no end."""
    lines = [shorten(line, longest_line) for line in visible(text, newlines=True).expandtabs(4).splitlines()]
    left_out = len(lines) - most_lines
    return "\n".join(lines if left_out <= 0 else [*lines[:most_lines], f"… {left_out} more lines"])


def apart(names: Sequence[str], longest: int) -> tuple[str, list[str]]:
    """Names fit for a narrow column, still told apart: the module path that all share is returned separately.

    Returns ``("", names)`` when they fit as they are, else the shared path and what each name has beyond it.
    """
    if all(len(text) <= longest for text in names) or len(names) < 2:
        return "", [name(text, longest) for text in names]
    split = [text.split(".") for text in names]
    shared = 0
    while all(len(parts) > shared + 1 for parts in split) and len({parts[shared] for parts in split}) == 1:
        shared += 1
    return ".".join(split[0][:shared]), [name(".".join(parts[shared:]), longest) for parts in split]
