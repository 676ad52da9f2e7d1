"""What could not be run on copies beside a training, and why: a run says it in its report, since its looks go on without it."""

from __future__ import annotations

from gnnstab.errors import UsageError

_MOST = 8
"""Reasons that are kept; a run has few."""

_reasons: dict[str, None] = {}


def left_out(reason: str) -> UsageError:
    """The error to raise in the place of a look on a copy, whose reason the report of the run will tell."""
    error = UsageError(reason)
    if len(_reasons) < _MOST:
        _reasons[str(error)] = None
    return error


def taken() -> list[str]:
    """The reasons since the last call."""
    reasons = list(_reasons)
    _reasons.clear()
    return reasons
