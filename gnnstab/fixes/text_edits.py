"""Replacements of source text at the places that the syntax tree names."""

from __future__ import annotations

import ast
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
