"""The terminal: the colours of a report, and rich renderables → text of a given width, with or without them.

The colours are numbers of the 256-colour palette with a contrast of at least 3 : 1 on black and on white, so that one set
serves dark and light terminals. No colour carries meaning alone: the word stands beside it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console, Group, RenderableType

from gnnstab.errors import UsageError

NARROWEST = 40
WIDEST = 120
"""Lines longer than this are hard to read; a wider terminal stays empty at the right."""

COLORS = (None, "standard", "256", "truecolor")

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


def printed(parts: Iterable[RenderableType], width: int, color: str | None) -> str:
    """The parts one below the other, without blanks at line ends; raises `UsageError` for an unknown colour system."""
    if color not in COLORS:
        raise UsageError(f"unknown colour system {color!r}; choose from standard, 256, truecolor")
    console = Console(
        file=io.StringIO(),
        width=max(NARROWEST, min(width, WIDEST)),
        force_terminal=color is not None,
        color_system=color,  # type: ignore[arg-type]
        no_color=color is None,
        # In a notebook rich would show the text beside returning it.
        force_jupyter=False,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
        _environ={},
    )
    with console.capture() as capture:
        # In a group a line keeps its own rule for wrapping; code, which must not be wrapped, is not cut either.
        for part in parts:
            console.print(Group(part), crop=False)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
