"""Interventions: each suspect is undone on a copy and the symptoms are measured again; the share of the way back decides.

The names are resolved on first use, so that what a trace has kept can be read without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnstab.plugins import on_first_use

if TYPE_CHECKING:
    from gnnstab.verification.interventions._applying import recalled as recalled
    from gnnstab.verification.interventions._by_rate import by_its_rate as by_its_rate
    from gnnstab.verification.interventions._inputs import as_batch as as_batch
    from gnnstab.verification.interventions._investigation import kept as kept
    from gnnstab.verification.interventions._symptoms import STATES as STATES
    from gnnstab.verification.interventions._undoing import investigated as investigated
    from gnnstab.verification.interventions._undoing import undo as undo

__getattr__ = on_first_use(
    __name__,
    _inputs="as_batch",
    _by_rate="by_its_rate",
    _symptoms="STATES",
    _undoing="investigated undo",
    _investigation="kept",
    _applying="recalled",
)
