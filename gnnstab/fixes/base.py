"""What a fix is: what it addresses, the exact change to print, and how to apply it to a copy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.records import LayerFacts, Signals

if TYPE_CHECKING:
    from torch import nn


class Fix(ABC):
    """One change to a model, its input or its training.

    Files in this room import torch inside `apply` only, so that a report can print the change without torch.
    """

    name: ClassVar[str]
    """Kebab case, e.g. ``residual``."""

    title: ClassVar[str]
    """A few words for reports."""

    causes: ClassVar[tuple[str, ...]]
    """Causes that it addresses, best first."""

    signal: ClassVar[str]
    """The signal that should move when it works."""

    edit: ClassVar[str] = ""
    """What it does to a layer, where not every kind can be edited so: see `gnnstab.layers.Layer.applies`."""

    keeps_function: ClassVar[bool]
    """True when the trained weights keep their meaning (a setting or a weight edit): judged on the current weights."""

    needs_fresh_weights: ClassVar[bool]
    """True when trained weights are useless after it: judged on paired fresh twins."""

    cost: ClassVar[str]
    """What it costs in time, memory or accuracy, in a few words."""

    @abstractmethod
    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The exact change as code for these layers, with the user's own arguments."""

    @abstractmethod
    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """A changed deep copy; the model itself is untouched.

        Raises `FixError` when the model offers no place for the change.
        """

    def helps(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> bool:
        """False where the change would leave this model as it is; such a fix is not offered."""
        return True

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """What the fix changes about training rather than the model: ``lr``, ``eps``, ``clip``, ``autocast``."""
        return {}
