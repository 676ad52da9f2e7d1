"""The change of a line whose result is thrown away."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.printing import on_one_line
from gnnstab.records import LayerFacts, Signal, Signals
from gnnstab.records.vocabulary import LOSS, PLACE_UNREAD_RESULT


def thrown_away(signals: Signals) -> list[Signal]:
    """Results of statements that give a name to nothing."""
    return [s for s in signals.find(PLACE_UNREAD_RESULT) if not s.detail.get("name")]


class KeepResult(ByHand):
    """Give the result of a line to the name that the lines behind it read."""

    name = "keep-result"
    title = "a result is kept"
    causes = ("indistinguishable-nodes", "masking")
    signal = LOSS
    only_with = "GS705"
    where = "the line whose result nothing reads"

    def helps(self, signals: Signals, **options: Any) -> bool:
        """True where a statement computes something by itself."""
        return bool(thrown_away(signals))

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        found = thrown_away(signals)
        if not found:
            return "h = h + encoding  # in place of the line h + encoding"
        code = on_one_line(found[0].detail.get("code") or "h + encoding")
        return f"# {on_one_line(found[0].detail.get('line') or 'in forward')}\n{_changed(code)} = {code}"


def _changed(code: str) -> str:
    """The name of what a statement seems to have been meant to change; ``h`` where its own text is none, or names nothing."""
    try:
        (statement,) = ast.parse(code).body
    except (SyntaxError, ValueError):
        return "h"
    part = statement.value if isinstance(statement, ast.Expr) else None
    while isinstance(part, (ast.BinOp, ast.Call)):
        if isinstance(part, ast.BinOp):
            part = part.left
        elif isinstance(part.func, ast.Attribute) and not _of_a_library(part.func.value):
            part = part.func.value
        else:
            part = part.args[0] if part.args else None
    return part.id if isinstance(part, ast.Name) else "h"


def _of_a_library(owner: ast.expr) -> bool:
    """True for ``torch`` or ``F``, and for a module of the model, as ``self.places``, that is called with what it changes."""
    return (isinstance(owner, ast.Name) and owner.id in ("torch", "F", "self")) or isinstance(owner, ast.Attribute)
