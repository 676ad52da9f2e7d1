"""The places of a trace's metadata → signals; what was written by nobody of ours is left out."""

from __future__ import annotations

from collections.abc import Mapping

from gnnstab.records import SIGNALS, Signal
from gnnstab.signals._measures import parsed


def place_signals(meta: Mapping[str, str], source: str) -> list[Signal]:
    """One signal for each row of ``places``: JSON, a list of [signal, place, value, detail]."""
    found = []
    for row in parsed(meta.get("places", ""), list):
        if isinstance(row, list) and [type(part) for part in row[:2]] == [str, str] and len(row) == 4:
            name, place, value, detail = row
            if name in SIGNALS and name.startswith("place.") and _is_number(value):
                found.append(
                    Signal(name, float(value), place, None, None, source, detail if isinstance(detail, dict) else {})
                )
    held = parsed(meta.get("not_held", ""), dict)
    if _is_number(held.get("count")):
        found.append(Signal("place.not_held", float(held["count"]), None, None, None, source, held))
    return found


def _is_number(value: object) -> bool:
    """True for what a float can hold; a file may hold whole numbers of any length."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**53)
