"""Interventions: each suspect is undone on a copy and the symptoms are measured again; the share of the way back decides.

The names are resolved on first use, so that what a trace has kept can be read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnstab.verification.interventions._applying import recalled as recalled
    from gnnstab.verification.interventions._inputs import as_batch as as_batch
    from gnnstab.verification.interventions._investigation import kept as kept
    from gnnstab.verification.interventions._undoing import investigated as investigated
    from gnnstab.verification.interventions._undoing import undo as undo

_HOMES = {
    "as_batch": "_inputs",
    "investigated": "_undoing",
    "kept": "_investigation",
    "recalled": "_applying",
    "undo": "_undoing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
