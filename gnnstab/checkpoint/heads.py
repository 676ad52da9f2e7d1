"""How many heads a TransformerConv has, where its shapes or the user say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gnnstab.checkpoint.layers import Conv
from gnnstab.errors import UsageError


class Heads(NamedTuple):
    """Heads of one layer."""

    heads: int | None
    """None when the file does not show it."""

    concat: bool | None
    source: str
    """``read from the shapes``, ``given``, ``stored in the module`` or ``""``."""


def heads_of(conv: Conv, given: int | None, concat: bool | None, known: Mapping[str, Any]) -> Heads:
    """The heads of one layer.

    Averaged heads (``concat=False``) make lin_skip H times narrower than lin_key, which shows H. Concatenated heads leave
    no trace: any divisor of the width is possible, one head included.

    Raises `UsageError` when what was given contradicts the shapes.
    """
    rows, skip = conv.rows, conv.skip_rows
    stored = known.get("heads")
    if isinstance(stored, int) and stored > 0 and rows % stored == 0:
        return Heads(stored, bool(known.get("concat", rows == skip)), "stored in the module")
    if rows != skip:
        if concat:
            raise UsageError(
                f"{conv.name}: concat=True contradicts the file: lin_skip gives {skip} channels, lin_key {rows}"
            )
        return Heads(rows // skip, False, "read from the shapes")
    if concat is False:
        if given not in (None, 1):
            raise UsageError(
                f"{conv.name}: {given} averaged heads contradict the file: lin_skip and lin_key both give {rows} channels"
            )
        return Heads(1, False, "follows from concat=False")
    if given is None:
        return Heads(None, None, "")
    if given < 1 or rows % given:
        divisors = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UsageError(f"--heads {given} does not divide the {rows} channels of {conv.name}; possible: {divisors}")
    return Heads(given, True, "given")
