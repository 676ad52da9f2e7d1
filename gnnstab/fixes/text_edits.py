"""Replacements of source text at the places that the syntax tree names."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple


class Edit(NamedTuple):
    """A replacement of source text: from (line, column) to (line, column), lines from 0, columns in UTF-8 bytes."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


def start_of(node: ast.expr | ast.stmt) -> tuple[int, int]:
    """Line and column where the node begins."""
    return node.lineno - 1, node.col_offset


def end_of(node: ast.expr | ast.stmt) -> tuple[int, int]:
    """Line and column behind the node."""
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno - 1, node.end_col_offset


def edited(source: str, edits: Sequence[Edit]) -> str:
    """The source with all edits made; they must not overlap."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    for edit in sorted(edits, reverse=True):
        (top, left), (bottom, right) = edit.start, edit.end
        lines[top : bottom + 1] = [lines[top][:left] + edit.text.encode() + lines[bottom][right:]]
    return b"".join(lines).decode()


def changed_lines(diff: str) -> list[str]:
    """The lines that a unified diff takes away, with their numbers in the file as it is, and adds, with those in the changed one.

    They stand under the name of each file; empty for other text.
    """
    shown: list[str] = []
    old, new, indent = 0, 0, None
    for line in diff.splitlines() if diff.startswith("--- ") else ():
        if line.startswith("+++ "):
            shown.append(line.removeprefix("+++ b/"))
        elif hunk := re.match(r"@@ -(\d+)\S* \+(\d+)", line):
            old, new, indent = int(hunk[1]), int(hunk[2]), None
            continue
        elif line.startswith(("-", "+")) and not line.startswith("--- "):
            blanks = len(line[1:]) - len(line[1:].lstrip())
            indent = blanks if indent is None else min(indent, blanks)
            shown.append(f"{old if line[0] == '-' else new:>4} {line[0]} {line[1 + indent :]}")
        old += line.startswith((" ", "-")) and not line.startswith("--- ")
        new += line.startswith((" ", "+")) and not line.startswith("+++ ")
    return shown
