"""How many heads a layer has, where its shapes or the user say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gnnstab.checkpoint._settings import heads_in
from gnnstab.errors import UsageError
from gnnstab.layers import StoredLayer


class Heads(NamedTuple):
    """Heads of one layer."""

    heads: int | None
    """None when the file does not show it."""

    concat: bool | None
    source: str
    """``read from the shapes``, ``given``, ``stored in the module``, `ASSUMED` with the setting, or which were tried."""


ASSUMED = "assumed from the file's setting"

IN_USE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Numbers of heads that are tried where neither the file nor the user says one."""


def tried_heads(rows: int) -> tuple[int, ...]:
    """The numbers of heads in use that divide ``rows``, the width of the concatenated heads."""
    return tuple(heads for heads in IN_USE if rows % heads == 0)


def heads_of(
    stored: StoredLayer,
    given: int | None,
    concat: bool | None,
    known: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
) -> Heads:
    """The heads of one layer.

    Averaged heads (``concat=False``) make the output H times narrower than the heads together, which shows H. Concatenated
    heads leave no trace: any divisor of the width is possible, one head included (see `tried_heads`). Where the ``settings`` of the file name one
    number of heads that fits, it is taken as an assumption, which the source says.

    Raises `UsageError` when what was given contradicts the shapes.
    """
    rows, out = stored.kind.widths(stored)
    inner, outer = stored.kind.width_names
    kept = known.get("heads")
    if isinstance(kept, int) and kept > 0 and rows % kept == 0:
        return Heads(kept, bool(known.get("concat", rows == out)), "stored in the module")
    shown = stored.kind.shown_heads(stored)
    if shown is not None:
        if given not in (None, shown):
            raise UsageError(f"heads={given} contradicts the file: {inner} of {stored.name} shows {shown}")
        return Heads(shown, rows == out if concat is None else concat, "read from the shapes")
    if rows != out:
        if concat:
            raise UsageError(
                f"{stored.name}: concat=True contradicts the file: {outer} gives {out} channels, {inner} {rows}"
            )
        return Heads(rows // out, False, "read from the shapes")
    if concat is False:
        if given not in (None, 1):
            raise UsageError(
                f"{stored.name}: {given} averaged heads contradict the file: {outer} and {inner} both give {rows} channels"
            )
        return Heads(1, False, "follows from concat=False")
    if given is None:
        said = heads_in(settings or {}, rows)
        if said is not None:
            return Heads(said.heads, True, f"{ASSUMED} {said.setting}")
        return Heads(
            None,
            None,
            f"{', '.join(map(str, tried_heads(rows)))} tried, and what every one of them gives at least is told",
        )
    if given < 1 or rows % given:
        divisors = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise UsageError(f"heads={given} does not divide the {rows} channels of {stored.name}; possible: {divisors}")
    return Heads(given, True, "given")
