"""Fixes: what each addresses, the exact change to print, and how to apply it to a copy.

::

    changed = gnnstab.fixes.apply(model, "residual", weight=1.0)
    print(gnnstab.fixes.change("residual", diagnosis.layers, weight=1.0))
"""

from gnnstab.fixes._norms_and_clamps import standardised as standardised
from gnnstab.fixes.base import Fix as Fix
from gnnstab.fixes.export import export as export
from gnnstab.fixes.recommendation import recommend as recommend
from gnnstab.fixes.source_diff import diff as diff
from gnnstab.fixes.table import FIXES as FIXES
from gnnstab.fixes.table import apply as apply
from gnnstab.fixes.table import change as change
from gnnstab.fixes.table import check_options as check_options
from gnnstab.fixes.table import find as find

__all__ = ["FIXES", "Fix", "apply", "change", "diff", "export", "find", "standardised"]
"""What users call; the other names are for the rooms beside this one."""
