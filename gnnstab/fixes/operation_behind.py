"""The operation that an event of a diagnosis names, for the fixes that print a line to write in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gnnstab.records import Signals


def operation_behind(signals: Signals | None) -> Mapping[str, Any]:
    """What is known about the first operation that made a NaN or Inf; empty where none was found."""
    if signals is None:
        return {}
    events = [e for e in signals.events if e.kind == "non-finite" and e.detail.get("operation")]
    first = min(events, key=lambda event: event.step, default=None)
    found = None if first is None else first.detail["operation"]
    return found if isinstance(found, Mapping) else {}


def spot(operation: Mapping[str, Any]) -> str:
    """``# line 26 of loss.py, now: loss = …`` above a change; empty where the line is unknown."""
    if not operation.get("file"):
        return ""
    name = str(operation["file"]).replace("\\", "/").rpartition("/")[2]
    code = f", now: {operation['code']}" if operation.get("code") else ""
    return f"# line {operation.get('line')} of {name}{code}\n"
