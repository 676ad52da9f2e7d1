"""What a trial is: one suspect undone on a copy of the model, or in a copy of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gnnstab.records import Finding, Signals
from gnnstab.verification.interventions._symptoms import Symptom

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Case:
    """What the suspects are looked for in."""

    model: nn.Module
    """A copy, in evaluation mode; no trial changes it."""

    batch: Any
    """One batch, as the user would call it."""

    loss: Any
    precision: str
    signals: Signals
    """Of the model as given."""

    findings: tuple[Finding, ...]
    symptoms: tuple[Symptom, ...]

    def suffers(self, *prefixes: str) -> bool:
        """True when a symptom's signal begins so."""
        return any(symptom.goal.signal.startswith(prefixes) for symptom in self.symptoms)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done differently in one forward and backward."""

    model: Callable[[nn.Module], AbstractContextManager[nn.Module]] | None = None
    """Gives the model changed, and puts it back; raises `FixError` where the model has no place for the change."""

    batch: Any = None
    """Replaces the batch."""

    precision: str | None = None
    """Replaces the number format."""

    score_factors: Mapping[str, Tensor] = field(default_factory=dict)
    """Layer → (H,) factors on the scores before the softmax."""

    output_factors: Mapping[str, float] = field(default_factory=dict)
    """Module → factor on its output."""

    centred: frozenset[str] = frozenset()
    """Modules of whose channels those that are negative on nearly all rows lose their mean over the rows."""

    pool_mean: bool = False
    """Poolings by a sum take the mean."""

    hand_mean: bool = False
    """Sums of features by an index in the model's own code take the mean."""

    unclamped: bool = False
    """Clamps at an upper limit let everything through."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One suspect, and the edit that undoes it."""

    name: str
    """Row of the table it comes from, e.g. ``standardise-input``."""

    cause: str
    """The cause that is a suspect."""

    words: str
    """What is done, as a gerund: ``standardising edge_attr``."""

    suspect: str
    """What is suspected, with its number: ``edge_attr enters with columns of RMS up to 346``."""

    edit: Edit
    deviates: bool
    """True when the suspect differs from its reference by measurement; False when it is merely configured."""

    place: str = ""
    """Name of the tensor, or of the modules."""

    written: str = ""
    """How code writes that tensor, where it stands inside of something else."""

    also: str = ""
    """The cause of a second suspect that is undone in the same edit, see `_pairs`."""
