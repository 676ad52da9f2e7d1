"""What an observation is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gnnstab.records import Signals, Target

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str], None]
"""Called with what is being done now."""


@dataclass(frozen=True, slots=True)
class Request:
    """How to observe a target; the fields are the arguments of `gnnstab.diagnose`."""

    model: Any = None
    batch: Any = None
    loss: Any = None
    optimizer: Any = None
    precision: str = "fp32"
    clip: float | None = None
    heads: int | None = None
    activation: str | None = None
    unsafe: bool = False
    progress: Progress = field(default=lambda _: None)


@dataclass(frozen=True, slots=True)
class Live:
    """A model and a batch at hand, so that something can be tried on copies."""

    model: nn.Module
    batch: Any
    loss: Any
    training: Mapping[str, Any] = field(default_factory=dict)
    """``optimizer``, ``lr`` and ``eps`` of the user's training, where they are known."""

    factory: Callable[[], nn.Module] | None = None
    """Makes the model with fresh weights, where the user named what does."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What kind of target it is, its signals, and the live model where there is one."""

    target: Target
    signals: Signals
    live: Live | None = None
