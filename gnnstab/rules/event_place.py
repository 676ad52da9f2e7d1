"""Where a value first stopped being a number, in the names of the user's own layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from gnnstab.records import Event, LayerFacts


class Place(NamedTuple):
    """Where it was, and whether it was made there."""

    where: str
    """``c3, stage score``, ``the model``."""

    how: str
    """``made here``, ``made in line 22 of train.py``; empty where that is not known."""


def place_of(event: Event, layers: Sequence[LayerFacts]) -> Place:
    """The layer and the stage, or, where the operation was seen in another one, that layer with the line of the user's code.

    A part of a layer that its user has not written, such as the module with which PyG adds messages up, goes by the name of the layer.
    """
    attention = {facts.name for facts in layers if facts.attention}
    owner = _owner(event.layer or "", attention)
    made = event.detail.get("operation")
    if isinstance(made, Mapping) and made.get("made_here") and made.get("place") == "model":
        module, line, file = (made.get(key) for key in ("module", "line", "file"))
        if event.origin == "came-in" and event.stage == "input" and isinstance(module, str) and module != event.layer:
            own = f"made in line {line} of {PurePath(file).name}" if isinstance(file, str) else "made there"
            return Place(module or "the model", own)
    if event.layer and owner != event.layer and event.stage == "input" and event.origin == "came-in":
        before = event.detail.get("finite_before")
        after = f", behind {before}" if isinstance(before, str) and before else ""
        return Place(owner, f"made within it{after}")
    stage = f", stage {event.stage}" if event.stage else ""
    return Place(f"{event.layer or 'the model'}{stage}", event.origin_words)


def event_place(event: Event, layers: Sequence[LayerFacts]) -> str:
    """``layer, stage score, head 1, step 1342 on rank 1, made here``."""
    where, how = place_of(event, layers)
    parts = [where]
    if event.heads:
        more = " …" if len(event.heads) > 4 else ""
        parts.append(f"head{'s' if len(event.heads) > 1 else ''} {', '.join(map(str, event.heads[:4]))}{more}")
    if event.ids:
        parts.append(event.ids)
    parts.append(f"step {event.step}" + (f" on rank {event.rank}" if event.rank >= 0 else ""))
    if how:
        parts.append(how)
    return ", ".join(parts)


def _owner(name: str, layers: Collection[str]) -> str:
    """The layer that a part of it belongs to; the name itself where it is none."""
    place = name
    while place and place not in layers:
        place = place.rpartition(".")[0]
    return place or name
