"""One forward of a model, ready to be run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gnnstab.probe.replaying.replica import Autocast


class Call(NamedTuple):
    """What a forward was given, and the state that it ran in."""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    rng: Any = None
    """As `gnnstab.probe.replaying.replica.rng_snapshot` gives it; None for the present state."""

    autocast: Autocast | None = None
    grad: bool = True
    """Whether gradients were enabled."""
