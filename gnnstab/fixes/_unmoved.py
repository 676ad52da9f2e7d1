"""Fixes of parameters that no update moves: a path from the loss, a place in the optimizer, or their being parameters at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gnnstab.fixes.by_hand import ByHand
from gnnstab.fixes.printing import variable
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import OPTIMIZER_NEVER_UPDATED, OPTIMIZER_UNDONE, PLACE_NOT_HELD, PLACE_PLAIN_SCORES


class Reconnect(ByHand):
    """Take ``detach()`` and ``no_grad()`` out of forward, and give the optimizer every parameter."""

    name = "reconnect"
    title = "a path from the loss to every parameter"
    causes = ("never-updated-parameter",)
    signal = OPTIMIZER_NEVER_UPDATED
    where = "forward or of the optimizer's parameters"

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        untold = signals.context.get("untold") or {}
        if untold and not (untold.get("updates") or untold.get("moved")):
            return "loss.backward()\noptimizer.step()  # after each backward, or after every few of them"
        if plain := list(dict.fromkeys(_plain(signals))):
            held = "\n".join(f"self.{own} = nn.Parameter({own})  # {place or 'the model'}" for place, own in plain)
            return f"# in __init__, and before the optimizer is made\n{held}"
        if not (built := _built_anew(signals)):
            return f"{_RECONNECT}{_HELD}"
        silent = any(s.value > 0 for s in signals.find(OPTIMIZER_NEVER_UPDATED))
        return f"{built}{_RECONNECT if silent else ''}{_HELD}"


def _built_anew(signals: Signals) -> str:
    """The line that builds the optimizer of what the model holds; empty where none lacks a parameter."""
    held = [signal.detail for signal in signals.find(PLACE_NOT_HELD)]
    if not held:
        return ""
    named = variable(str(signals.context.get("optimizer", "Adam")))
    after = (
        "a forward, which makes the last of them"
        if any(d.get("late") for d in held)
        else "the last change of the model"
    )
    return f"# after {after}; lr and other settings as they were\noptimizer = torch.optim.{named}(model.parameters(), lr=lr)\n"


def _plain(signals: Signals) -> Iterator[tuple[str, str]]:
    """Module and attribute of every plain tensor that should be a parameter."""
    for signal in signals.find(PLACE_PLAIN_SCORES):
        yield signal.layer or "", str(signal.detail["attribute"])
    for signal in signals.find(OPTIMIZER_UNDONE):
        if signal.detail.get("cause") in Reconnect.causes:
            for name in signal.detail["names"]:
                place, _, own = str(name).rpartition(".")
                yield place, own


_HELD = (
    "held = {id(p) for group in optimizer.param_groups for p in group['params']}\n"
    "assert all(id(p) in held for p in model.parameters() if p.requires_grad)"
)
_RECONNECT = (
    "# forward: no .detach(), .data or torch.no_grad() between the layers; the optimizer: model.parameters()\n"
    "loss.backward()\n"
    "assert all(p.grad is not None for p in model.parameters() if p.requires_grad)\n"
)
