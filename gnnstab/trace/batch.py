"""What is waiting to be written, already in the form of columns."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SiteRows: TypeAlias = "Sequence[tuple[float, float, float, int, int]] | NDArray[np.float64]"
"""Per series: minimum, maximum, rms, count, non_finite; a sequence of tuples or an array of shape (K, 5)."""

SiteItem = tuple[int, Sequence[int], SiteRows]
"""Step, ids of the series, shape (K,), and their rows."""

Columns = tuple[Any, ...]
"""One row of a table, in the order of the table's definition."""


@dataclass
class Facts:
    """Rows that say something of the run as a whole, by their key; a newer row of the same key replaces the older."""

    meta: dict[str, Columns] = field(default_factory=dict)
    layer: dict[str, Columns] = field(default_factory=dict)
    blind: dict[tuple[str, str], Columns] = field(default_factory=dict)
    series: dict[int, Columns] = field(default_factory=dict)
    quantity: dict[int, Columns] = field(default_factory=dict)

    def update(self, other: Facts) -> None:
        """Take over everything from ``other``."""
        for name, rows in vars(other).items():
            getattr(self, name).update(rows)

    def __bool__(self) -> bool:
        return any(vars(self).values())


@dataclass
class Batch:
    """Rows on their way into the store; the oldest are given up first when it cannot be written."""

    facts: Facts = field(default_factory=Facts)
    shared: set[int] = field(default_factory=set)
    """Ids of the series of `gnnstab.trace.pooling.SHARED_SITES`."""

    events: deque[Columns] = field(default_factory=deque)
    sites: deque[SiteItem] = field(default_factory=deque)
    steps: deque[Columns] = field(default_factory=deque)
    measures: deque[Columns] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.facts or self.events or self.sites or self.steps or self.measures)

    def portion(self, rows: int) -> Batch:
        """Take out the facts and events, and of the other kinds the oldest, about ``rows`` rows of each."""
        part = Batch(self.facts, self.shared, self.events)
        self.facts, self.events = Facts(), deque()
        for source, target in ((self.steps, part.steps), (self.measures, part.measures)):
            target.extend(source.popleft() for _ in range(min(rows, len(source))))
        taken = 0
        while self.sites and taken < rows:
            taken += len(self.sites[0][1])
            part.sites.append(self.sites.popleft())
        return part

    def put_back(self, part: Batch) -> None:
        """Undo `portion`."""
        part.facts.update(self.facts)
        self.facts = part.facts
        for name in ("events", "sites", "steps", "measures"):
            getattr(self, name).extendleft(reversed(getattr(part, name)))

    def shrink(self, sites: int, rows: int) -> int:
        """Drop the oldest beyond ``sites`` calls and ``rows`` rows of each other kind; return how many rows that cost."""
        dropped = 0
        while len(self.sites) > sites:
            dropped += len(self.sites.popleft()[1])
        for queue in (self.steps, self.measures, self.events):
            while len(queue) > rows:
                queue.popleft()
                dropped += 1
        return dropped
