"""Slots: small integers that stand for series while a run is recorded."""

from __future__ import annotations

from gnnstab.records import SeriesKey

MODES = (("eval", "eval-grad"), ("train-nograd", "train"))
"""``MODES[training][gradients enabled]``."""

CALLS = 16
"""Calls of one layer within one outer forward that get series of their own; later ones are merged into the last."""


class SeriesIds:
    """Numbers series in the order in which they appear."""

    def __init__(self) -> None:
        self._slots: dict[SeriesKey, int] = {}
        self.all: list[SeriesKey] = []
        """The key of every slot."""

    def slot(self, layer: str, mode: str, call: int, site: str) -> int:
        """The slot of a series, a new one on first use."""
        key = SeriesKey(layer, mode, call, site)
        slot = self._slots.get(key)
        if slot is None:
            slot = self._slots[key] = len(self.all)
            self.all.append(key)
        return slot
