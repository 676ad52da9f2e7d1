"""`Trace`: reads a run back, of one process or of all ranks of a distributed run."""

from __future__ import annotations

import gc
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import islice
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gnnstab.errors import TraceError
from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow
from gnnstab.trace import _codec as codec
from gnnstab.trace._arrays import Peak, join_ranks, read_peaks, read_sites, read_steps
from gnnstab.trace._connection import MOST_FACTS, MOST_ROWS, Connection
from gnnstab.trace._doubtful import broken_at_the_end, doubtful_rows, first_broken_loss, missing_tables
from gnnstab.trace._locate import Part, open_parts
from gnnstab.trace._schema import EVENTS_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
Row = tuple[Any, ...]

_by_step = attrgetter("step", "rank")

_MOST, _LONGEST = 8, 600
"""Reasons of looks that were left out, and characters of each, that are shown."""

_MOST_DAMAGED = 50
"""Damaged rows that are told of one by one; a file may damage each in its own way."""


class Trace:
    """One run as it was recorded up to the moment of opening; what is recorded later is seen by opening again.

    Every method raises `TraceError` when the file turns out to be damaged. Rows of a distributed run carry their
    ``rank``. A snapshot that stays open keeps the journal of a live trace from being emptied: close it soon.
    """

    def __init__(
        self, path: str, parts: Sequence[Part], notes: Sequence[str] = (), missing_ranks: tuple[int, ...] = ()
    ) -> None:
        self.path = path
        """The path as it was given; ``"memory"`` for a trace that was never in a file."""

        self.missing_ranks = missing_ranks
        """Processes of a distributed run of which nothing is here: their file is gone, or could not be read."""

        self._parts = tuple(parts)
        self._notes = [*notes, *(note for part in parts for note in part.connection.notes)]
        self._damaged: dict[str, None] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Trace:
        """Open a trace file, read-only.

        For a distributed run: a list of the ranks' files, their folder, or their stem (``run`` for
        ``run.rank0.gnnstab``, ``run.rank1.gnnstab``, …). A rank whose file cannot be read is left out with a note.
        """
        return cls(*open_parts(path))

    @classmethod
    def of_connection(cls, connection: sqlite3.Connection) -> Trace:
        """A trace in memory; the connection belongs to the trace from here on."""
        return cls("memory", [Part(Connection(connection, "memory"), -1)])

    @cached_property
    def meta(self) -> dict[str, str]:
        """What the writer says about the run; of a distributed run, the lowest rank's, and ``ranks``."""
        merged: dict[str, str] = {}
        for part in self._parts:
            for key, value in part.connection.rows("SELECT key, value FROM meta"):
                merged.setdefault(str(key), str(value))
        if len(self._parts) > 1:
            merged["ranks"] = ",".join(str(rank) for rank in self.ranks)
        return merged

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the processes whose files were read; (-1,) outside a distributed run."""
        return tuple(part.rank for part in self._parts)

    @property
    def complete(self) -> bool:
        """True when every writer ended its trace, so that nothing of the run is missing at its end."""
        return all(part.connection.rows("SELECT 1 FROM meta WHERE key = 'closed'") for part in self._parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be read, or not be run on copies of the model, and was left out."""
        left_out = [reason[:_LONGEST] for reason in self.meta.get("left_out", "").split("\n") if reason]
        damaged = list(islice(self._damaged, _MOST_DAMAGED))
        if more := len(self._damaged) - len(damaged):
            damaged.append(f"{self.path}: {more} more kinds of damage to its rows, likewise left out")
        looks = (f"some looks on copies were left out: {reason}" for reason in left_out[:_MOST])
        return (*self._notes, *damaged, *looks)

    def layers(self) -> tuple[LayerFacts, ...]:
        """Facts of all recorded layers in order of their position."""
        merged: dict[str, LayerFacts] = {}
        for part in self._parts:
            query = "SELECT facts FROM layer"
            for facts in self._decoded(part, query, "layer", lambda row: codec.facts_from_json(row[0])):
                merged.setdefault(facts.name, facts)
        return tuple(sorted(merged.values(), key=lambda facts: (facts.position, facts.name)))

    def blind(self) -> tuple[Blind, ...]:
        """Sites that could not be observed."""
        found = dict.fromkeys(
            Blind(str(layer), str(site), str(reason))
            for part in self._parts
            for layer, site, reason in part.connection.rows("SELECT layer, site, reason FROM blind")
        )
        return tuple(found)

    def steps(self) -> tuple[StepRow, ...]:
        """Training steps in order, of a distributed run one per rank."""
        query = f"SELECT {', '.join(codec.STEP)} FROM step"
        rows = [row for part in self._parts for row in self._rows_of(part, query, _step)]
        return tuple(sorted(rows, key=_by_step))

    def step_arrays(self) -> NDArray[np.void]:
        """`steps` as one array of `STEP_DTYPE`; what is not known is NaN."""
        return join_ranks([read_steps(part.connection, part.rank) for part in self._parts])

    @cached_property
    def _keys(self) -> list[dict[int, SeriesKey]]:
        query = f"SELECT id, {', '.join(codec.SERIES)} FROM series"
        decode = partial(_numbered, make=SeriesKey, fields=codec.SERIES)
        return [dict(sorted(self._decoded(part, query, "series", decode))) for part in self._parts]

    def keys(self) -> dict[int, SeriesKey]:
        """The recorded series by id; of a distributed run numbered anew, since every rank counts for itself."""
        if len(self._keys) == 1:
            return dict(self._keys[0])
        distinct = dict.fromkeys(key for keys in self._keys for key in keys.values())
        return dict(enumerate(distinct, start=1))

    def sites(
        self,
        layer: str | None = None,
        site: str | Collection[str] | None = None,
        mode: str | None = None,
        call: int | None = None,
        *,
        points: int | None = None,
    ) -> dict[SeriesKey, NDArray[np.void]]:
        """Site statistics of the matching series, each an array of `SITE_DTYPE` in order of steps (then ranks).

        Args:
            layer: Name of a layer, or of a parameter.
            site: One site or several.
            mode: One mode.
            call: One call within the forward, from 0.
            points: Read the latest ``points`` steps in full, and those before in at most about as many rows of pooled
                steps (extremes of extremes, RMS over all entries): much faster for a long run.
        """
        sites = (site,) if isinstance(site, str) else site
        found: dict[SeriesKey, list[NDArray[np.void]]] = {}
        for part, keys in zip(self._parts, self._keys, strict=True):
            chosen = {
                i: key
                for i, key in keys.items()
                if layer in (None, key.layer) and mode in (None, key.mode) and call in (None, key.call)
                if sites is None or key.site in sites
            }
            if not chosen:
                continue
            arrays = read_sites(part.connection, None if len(chosen) == len(keys) else chosen, part.rank, points)
            for i, key in chosen.items():
                if i in arrays:
                    found.setdefault(key, []).append(arrays[i])
        return {key: join_ranks(arrays) for key, arrays in found.items()}

    def peaks(self, measure: str) -> dict[SeriesKey, Peak]:
        """The largest finite ``size`` (of any entry) or ``rms`` of every series over the whole run, with its step."""
        found: dict[SeriesKey, Peak] = {}
        for part, keys in zip(self._parts, self._keys, strict=True):
            for i, peak in read_peaks(part.connection, measure).items():
                if i in keys and (keys[i] not in found or peak.value > found[keys[i]].value):
                    found[keys[i]] = peak
        return found

    def measures(self, name: str | None = None, layer: str | None = None) -> list[Measure]:
        """Full-tier numbers in order of steps."""
        found: list[Measure] = []
        quantities = f"SELECT id, {', '.join(codec.QUANTITY)} FROM quantity"
        numbered = partial(_numbered, make=codec.Quantity, fields=codec.QUANTITY)
        for part in self._parts:
            listed = dict(self._rows_of(part, quantities, lambda row, _: numbered(row), MOST_FACTS))
            chosen = {i: q for i, q in listed.items() if name in (None, q.name) and layer in (None, q.layer)}
            decode = partial(codec.measure_from_columns, quantities=chosen)
            query = _measure_query(None if len(chosen) == len(listed) else chosen)
            with _rows_are_no_garbage():
                rows = list(self._rows_of(part, query, decode))
            rows.sort(key=itemgetter(0))
            found += map(itemgetter(1), rows)
        found.sort(key=attrgetter("step") if len(self._parts) == 1 else _by_step)
        return found

    def events(self, kind: str | None = None) -> tuple[Event, ...]:
        """Events in order of steps; ``kind`` narrows them. Of a damaged one that is ``non-finite`` stays what can be read."""
        return tuple(event for event in self._events[0] if kind in (None, event.kind))

    @cached_property
    def _events(self) -> tuple[tuple[Event, ...], int]:
        """All events, and how many are damaged."""
        query = f"SELECT id, {', '.join(codec.EVENT)} FROM event"
        found: list[Event] = []
        damaged = 0
        for part in self._parts:
            rows = part.connection.rows(query, most=EVENTS_LIMIT)
            for row in sorted(rows, key=lambda row: row[0] if isinstance(row[0], int) else 0):
                fields, bad = codec.event_from_columns(row[1:])
                if bad:
                    damaged += 1
                    note = f"{part.connection.path}: a damaged event was left out, or read in part ({', '.join(bad)})"
                    self._damaged[note] = None
                if not bad or fields.get("kind") == "non-finite":
                    found.append(Event(**fields, rank=part.rank))
        return tuple(sorted(found, key=_by_step)), damaged

    @cached_property
    def last_step(self) -> int | None:
        """The highest step with any row, or None for an empty trace."""
        query = " UNION ALL ".join(
            f"SELECT max(step) FROM {table}" for table in ("statistic", "step", "measure", "event")
        )
        found = [row[0] for part in self._parts for row in part.connection.rows(query) if isinstance(row[0], int)]
        return max(found, default=None)

    @cached_property
    def doubtful_rows(self) -> int:
        """Malformed rows, which nothing or only a part of the reading reaches: see `doubtful_rows`; and damaged events."""
        return sum(doubtful_rows(part.connection) for part in self._parts) + self._events[1]

    @cached_property
    def missing_tables(self) -> list[str]:
        """What no row is left of, of ``statistics``, ``measures`` and ``steps``, although rows beside it are there."""
        return sorted({name for part in self._parts for name in missing_tables(part.connection)})

    @cached_property
    def first_broken_loss(self) -> int | None:
        """The first step that was made with a training loss of NaN or Inf."""
        found = [first_broken_loss(part.connection) for part in self._parts]
        return min((step for step in found if step is not None), default=None)

    @cached_property
    def broken_at_the_end(self) -> int | None:
        """The last step, where it was made with a gradient of NaN or Inf."""
        found = [broken_at_the_end(part.connection) for part in self._parts]
        return min((step for step in found if step is not None), default=None)

    def close(self) -> None:
        """Let the snapshot go."""
        for part in self._parts:
            part.connection.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _rows_of(self, part: Part, query: str, decode: Callable[[Row, int], T], most: int = MOST_ROWS) -> Iterator[T]:
        """Numbers over steps: one that is none spoils what is made of them, so it is an error and not a note."""
        for chunk in part.connection.chunks(query, most):
            try:
                yield from [decode(row, part.rank) for row in chunk]
            except (ValueError, TypeError) as error:
                raise TraceError(f"{part.connection.path}: damaged trace, {error}") from error

    def _decoded(
        self, part: Part, query: str, what: str, decode: Callable[[Row], T], most: int = MOST_FACTS
    ) -> Iterator[T]:
        """Facts and events: a row that a stranger, or a fault of the disk, has spoilt costs that row and a note."""
        for row in part.connection.rows(query, most=most):
            try:
                yield decode(row)
            except (ValueError, TypeError) as error:
                self._damaged[f"{part.connection.path}: a damaged {what} was left out ({error})"] = None


@contextmanager
def _rows_are_no_garbage() -> Iterator[None]:
    """The collector, which would look through millions of rows again and again, rests meanwhile."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _step(row: Row, rank: int) -> StepRow:
    return StepRow(**codec.from_columns(codec.STEP, row), rank=rank)


def _numbered(row: Row, make: Callable[..., T], fields: codec.Fields, **more: Any) -> tuple[int, T]:
    """The id of a row and the record behind it."""
    return codec.integer(row[0]), make(**codec.from_columns(fields, row[1:]), **more)


def _measure_query(quantities: Iterable[int] | None) -> str:
    # Not sorted by SQLite: a crafted file could make it gather more rows than memory holds before it gives the first.
    where = "" if quantities is None else f" WHERE quantity IN ({', '.join(str(int(i)) for i in quantities)})"
    return f"SELECT number, step, quantity, value, detail FROM measure{where}"
