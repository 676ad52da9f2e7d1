"""Rows of a trace: what the probe hands to the store and the signals read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SITES = ("input", "output", "score", "attention", "gate", "grad_output", "grad_input", "aggregate")
"""Where activations and gradients are recorded. ``aggregate`` is the output of a non-attention aggregation."""

PARAMETER_SITES = ("weight", "weight_grad", "update")
"""Sites of a parameter; the series' layer is then the parameter's full name."""

STAGES = (
    *("input", "query", "key", "value", "edge", "score", "attention", "aggregate", "skip", "gate", "output"),
    *("gradient", "weight", "loss"),
)
"""Stages of an attention layer in the order of computation, then the later ones of a step."""


class SeriesKey(NamedTuple):
    """What identifies one stream of site statistics."""

    layer: str
    """Module path, or parameter name for the parameter sites."""

    mode: str
    """``train``, ``train-nograd``, ``eval`` or ``eval-grad``."""

    call: int
    """0 for the first call of this layer within one outer forward, 1 for the second, …"""

    site: str


class Measure(NamedTuple):
    """One full-tier number."""

    step: int
    layer: str
    """Module path; ``""`` for a number of the whole model."""

    mode: str
    call: int
    name: str
    """A key of `SIGNALS`."""

    head: int
    """-1 for the aggregate over heads."""

    value: float
    detail: str = ""
    """JSON, or empty."""

    rank: int = -1
    """Process of a distributed run, set when the row is read back; -1 outside one."""


class StepRow(NamedTuple):
    """One training step."""

    step: int
    time: float
    """Seconds since the trace was opened (monotonic clock)."""

    loss: float | None
    lr: float | None
    scale: float | None
    """GradScaler's scale, where known."""

    grad_norm: float | None
    """L2 norm over all parameter gradients."""

    skipped: bool = False
    """True when the optimizer did not step because GradScaler saw non-finite gradients: normal."""

    rank: int = -1
    """Process of a distributed run, set when the row is read back; -1 outside one."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at one step: a non-finite value, a failure of the tool, a finding raised live."""

    step: int
    kind: str
    """``non-finite``, ``tool-failure``, ``finding`` or ``note``."""

    layer: str | None = None
    mode: str = ""
    call: int = 0
    stage: str | None = None
    """One of `STAGES`."""

    origin: str | None = None
    """``made-here``, ``came-in`` or None when it could not be decided."""

    nodes: tuple[int, ...] = ()
    """Ids of the first affected target nodes (at most 16)."""

    edges: tuple[int, ...] = ()
    """Positions in the edge list of the first affected edges (at most 16)."""

    heads: tuple[int, ...] = ()
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is known, JSON-able: ``weights_finite``, ``largest_before``, ``limit``, ``dtype``, ``bundle``."""

    rank: int = -1
    """Process of a distributed run, set when the event is read back; -1 outside one."""

    @property
    def ids(self) -> str:
        """``edge 106→69``, ``node 4``, ``target nodes 4, 7``, or nothing."""
        ends = [f"{source}→{target}" for source, target in self.detail.get("edge_ends") or ()]
        if ends or (self.edges and not self.nodes):
            return _listed("edge", ends or self.edges)
        return _listed("target node" if self.edges else "node", self.nodes)

    @property
    def origin_words(self) -> str:
        """Whether it was made at its place or was there already, in words; nothing where that is not known."""
        if self.origin == "came-in":
            return _CAME_IN.get(self.stage or "", "came in with its input")
        return {None: "", "made-here": "made here"}.get(self.origin, self.origin or "")


_CAME_IN = {"gradient": "came from the layers behind it", "weight": "held before the forward"}


def _listed(what: str, ids: Sequence[object]) -> str:
    if not ids:
        return ""
    return f"{what}{'s' * (len(ids) > 1)} {', '.join(map(str, ids[:4]))}{' …' if len(ids) > 4 else ''}"


_OTHER = "scores of "
_NO_EDGE = "no call had an edge"
_CAME_LATER = "the layer was put into the model after the monitor was attached; attach a new monitor to see it"


@dataclass(frozen=True, slots=True)
class Blind:
    """A site that could not be observed."""

    layer: str
    site: str
    reason: str
    """Why, and what to do to see it."""

    @classmethod
    def other_attention(cls, layer: str, kind: str, reason: str) -> Blind:
        """An attention layer of a kind whose scores no part of gnnstab knows to find."""
        return cls(layer, f"{_OTHER}{kind}", reason)

    @classmethod
    def without_edge(cls, layer: str, site: str) -> Blind:
        """A layer that was called, each time without an edge that could be scored."""
        return cls(layer, site, _NO_EDGE)

    @classmethod
    def late(cls, layer: str) -> Blind:
        """A layer that came into the model when its monitor was attached already."""
        return cls(layer, "output", _CAME_LATER)

    @property
    def came_later(self) -> bool:
        """True for what `late` makes: the run was not seen, and the end of it may be."""
        return self.reason == _CAME_LATER

    @property
    def is_without_edge(self) -> bool:
        """True for what `without_edge` makes: there was nothing to see."""
        return self.reason == _NO_EDGE

    @property
    def is_other_attention(self) -> bool:
        """True for what `other_attention` makes: nothing has failed, and nothing can be done about it."""
        return self.site.startswith(_OTHER)
