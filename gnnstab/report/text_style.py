"""Colours of the terminal report.

Numbers of the 256-colour palette with a contrast of at least 3 : 1 on black and on white, so that one set serves dark
and light terminals. No colour carries meaning alone: the word stands beside it.
"""

from __future__ import annotations

RED = "color(160)"
AMBER = "color(136)"
BLUE = "color(31)"
GREEN = "color(28)"
MUTED = "color(243)"
HEADING = "bold underline"

SEVERITY = {"error": f"bold {RED}", "warning": f"bold {AMBER}", "info": BLUE}
STATE = {"unstable": f"bold reverse {RED}", "stable": f"bold {GREEN}", "nothing-found": f"bold {BLUE}",
         "not-evaluable": f"bold {AMBER}"}  # fmt: skip
CAUSE = {"root-cause": f"bold {RED}", "contributing": AMBER, "present": BLUE, "absent": GREEN, "not-evaluable": MUTED}
VERDICT = {
    "confirmed": f"bold {GREEN}",
    "no-effect": AMBER,
    "made-worse": RED,
    "inconclusive": AMBER,
    "not-tested": MUTED,
}
