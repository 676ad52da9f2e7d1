"""What the first of several copies of a model has shown, so that the next ones are not asked about it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary


@dataclass
class Known:
    """What the first copy of a model has shown, and of its optimizer; the next ones do the same as long as the two are as they were."""

    modes: set[tuple[bool, bool]] = field(default_factory=set)
    """(training, with gradients) of every mode in which a forward was looked at."""

    copied: bool = False
    """A copy of the model was made that shares nothing with the run."""

    moved: bool = False
    """So was one of the optimizer."""

    around: list[Any] = field(default_factory=list)
    """What the copies of the model have in common with the run, see `gnnstab.probe.replaying.reach.code_around`; empty where it is not known."""

    beside: list[Any] = field(default_factory=list)
    """The same of the copies of the optimizer."""

    def learn(self, other: Known) -> None:
        """Whatever ``other`` knows of copies of the same model, and what it will know, holds here as well."""
        self.modes, self.copied, self.around = other.modes, other.copied, other.around


_once: ContextVar[MutableMapping[nn.Module, Known] | None] = ContextVar("_once", default=None)


@contextmanager
def asked_once() -> Iterator[None]:
    """Inside, no model changes but in its numbers: what its first copy was not refused no other is asked about, whoever makes it."""
    if _once.get() is not None:
        yield
        return
    token = _once.set(WeakIdKeyDictionary())
    try:
        yield
    finally:
        _once.reset(token)


def known_of(model: nn.Module) -> Known | None:
    """What copies of a model have shown so far within `asked_once`; None outside of it."""
    kept = _once.get()
    return None if kept is None else kept.setdefault(model, Known())
