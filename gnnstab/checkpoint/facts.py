"""What a checkpoint says, as plain records free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gnnstab.records import Blind, LayerFacts, Signal


@dataclass(frozen=True, slots=True)
class Undecided:
    """Something that the file does not show."""

    what: str
    """``heads``, ``dropout``, ``root_weight``, …"""

    reason: str
    """Why the file cannot show it."""

    option: str
    """What to pass to decide it."""

    layers: tuple[str, ...] = ()
    """The layers concerned."""


@dataclass(frozen=True)
class CheckpointFacts:
    """Everything that was recovered from one checkpoint."""

    path: str
    layers: tuple[LayerFacts, ...] = ()
    """The attention layers in order of appearance in the file."""

    values: tuple[Signal, ...] = ()
    """Numbers from the weights (source ``weights``) and the optimizer state (source ``optimizer``)."""

    undecided: tuple[Undecided, ...] = ()
    assumptions: tuple[str, ...] = ()
    """``"heads=3: read from the shapes"``, ``"activation=relu: assumed"``, …"""

    notes: tuple[str, ...] = ()
    unjudged: tuple[Blind, ...] = ()
    """Attention layers of kinds without an adapter, and layers whose tensors cannot be read."""

    linear_layers: int = 0
    """Plain Linear layers beside the attention layers."""

    linear_initialisation: str | None = None
    """Initialisation that all plain Linear layers share, ``mixed``, ``unknown``, or None when there is none to look at."""

    trained: bool | None = None
    """False: every weight still has its initial distribution. True: something moved. None: the file does not tell."""

    trained_reason: str = ""
    """What ``trained`` was read from."""

    steps_counted: bool = False
    """True where the file counts steps of a training that were taken."""

    reshaped: str = ""
    """Where ``trained`` is None: what in the shape of the weights speaks against a draw."""

    uninitialised: tuple[str, ...] = ()
    """Parameters that were saved before their first forward pass gave them a shape."""

    optimizers: tuple[str, ...] = ()
    """One line per optimizer: where it stood and how its entries were tied to parameters."""

    progress: Mapping[str, int] = field(default_factory=dict)

    @property
    def layers_expected(self) -> int:
        """Attention layers in the file, judged or not."""
        return len(self.layers) + len(self.unjudged)
