"""Proof: fixes applied to copies and judged on the user's own model.

The names are resolved on first use, so that a trace can be diagnosed without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnstab.verification._proof import prove as prove
    from gnnstab.verification._protocol import verify as verify
    from gnnstab.verification._verdict import Verdict as Verdict
    from gnnstab.verification.interventions import undo as undo

_HOMES = {"Verdict": "_verdict", "prove": "_proof", "undo": "interventions", "verify": "_protocol"}

__all__ = ["Verdict", "prove", "undo", "verify"]  # resolved by __getattr__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
