"""NaN and Inf that the rows of a run hold and that no event of it tells of: its events were lost, or somebody took them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.records import PARAMETER_SITES, STAGES, Event, SeriesKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gnnstab.trace import Trace

_NOTE = "the trace holds no event of it, so that nothing was looked at where it happened"


_MOST = 200
"""Series that are read once more in full, in the order of the layers."""


def with_rows(trace: Trace, sites: Mapping[SeriesKey, NDArray[np.void]]) -> tuple[Event, ...]:
    """The events, and where none tells of a non-finite value the first one that the rows show.

    Gradients are left out but for the norm of the last step, since a GradScaler drops bad ones, and so are evaluations, where a NaN may stand on
    purpose: of those only an event says that they mattered. Weights count that began finite and did not end so. Where an event tells of one that the code takes away again, others are like it.
    """
    events = trace.events()
    if any(event.kind == "non-finite" or event.detail.get("taken_away") for event in events):
        return events
    bad = [key for key, rows in sites.items() if len(rows) and (_forward_of_training(key) or key.site == "weight")]
    bad = [key for key in bad if (_went_bad if key.site == "weight" else _any_broken)(sites[key])]
    # Of a long run `sites` holds its old steps in buckets, whose first step need not be the one.
    found = [_of_rows(key, trace.sites(key.layer, key.site, key.mode, key.call)[key]) for key in bad[:_MOST]]
    if (step := trace.first_broken_loss) is not None:
        found.append(Event(step, "non-finite", mode="train", stage="loss", detail={"note": _NOTE}))
    if (step := trace.broken_at_the_end) is not None:
        found.append(Event(step, "non-finite", mode="train", stage="gradient", detail={"note": _NOTE}))
    return (*events, *sorted(found, key=_order)[:1])


def _forward_of_training(key: SeriesKey) -> bool:
    return key.mode == "train" and key.site not in PARAMETER_SITES and not key.site.startswith("grad")


def _broken(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    infinite = np.isinf(rows["minimum"]) | np.isinf(rows["maximum"])
    return np.asarray((rows["non_finite"] != 0) | infinite)


def _any_broken(rows: NDArray[np.void]) -> bool:
    return bool(_broken(rows).any())


def _went_bad(rows: NDArray[np.void]) -> bool:
    broken = _broken(rows)
    return bool(broken[-1] and not broken[0])


def _of_rows(key: SeriesKey, rows: NDArray[np.void]) -> Event:
    first = rows[np.argmax(_broken(rows))]
    stage = key.site if key.site in STAGES else "output"
    rank, step = int(first["rank"]), int(first["step"])
    detail = {"note": _NOTE}
    return Event(step, "non-finite", key.layer, key.mode, key.call, stage, detail=detail, rank=rank)


def _order(event: Event) -> tuple[int, bool, int]:
    """By step; within one in the order of computation, the loss last."""
    return event.step, event.stage == "loss", STAGES.index(event.stage or "loss")
