"""The places of a trace's metadata → signals; what was written by nobody of ours is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gnnstab.records import SIGNALS, Signal


def place_signals(meta: Mapping[str, str], source: str) -> list[Signal]:
    """One signal for each row of ``places``: JSON, a list of [signal, place, value, detail]."""
    found = []
    for row in _list(meta.get("places", "")):
        if isinstance(row, list) and [type(part) for part in row[:2]] == [str, str] and len(row) == 4:
            name, place, value, detail = row
            if name in SIGNALS and name.startswith("place.") and _is_number(value):
                found.append(
                    Signal(name, float(value), place, None, None, source, detail if isinstance(detail, dict) else {})
                )
    held = _object(meta.get("not_held", ""))
    if _is_number(held.get("count")):
        found.append(Signal("place.not_held", float(held["count"]), None, None, None, source, held))
    return found


def _is_number(value: object) -> bool:
    """True for what a float can hold; a file may hold whole numbers of any length."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _list(text: str) -> list[Any]:
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
