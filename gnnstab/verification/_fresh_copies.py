"""Fresh twins: copies of a model with newly drawn weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gnnstab.errors import UsageError
from gnnstab.fixes.model_structure import duplicate
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.randomness import seeded as seeded

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class AsBegan:
    """Makes the model as its run began: no chance, and nothing that the training has made."""

    model: nn.Module

    def __call__(self) -> nn.Module:
        return duplicate(self.model)


def fresh_twin(model: nn.Module, seed: int, factory: Factory | None = None) -> nn.Module:
    """A copy with fresh weights drawn from ``seed``: by the user's ``factory``, else by every ``reset_parameters``.

    Raises `UsageError` when the factory makes a model with other parameters.
    """
    with seeded(seed):
        if factory is None:
            twin = duplicate(model)
            reinitialise(twin)
            return twin
        twin = factory()
    first = next(model.parameters(), None)
    if {k: v.shape for k, v in twin.state_dict().items()} != {
        k: v.shape for k, v in duplicate(model).state_dict().items()
    }:
        raise UsageError(
            "the factory makes a model with other parameters than the one given; its twins would prove nothing"
        )
    return twin if first is None else in_mode(twin.to(first.device, first.dtype), model.training)


def reinitialise(model: nn.Module) -> list[str]:
    """Call ``reset_parameters`` of every module that has one; names of the parameters that none of them reached."""
    reached: set[int] = set()
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )  # torch's attention
        if callable(reset):
            reset()
            reached |= {id(p) for p in module.parameters()}
    return [name for name, p in model.named_parameters() if id(p) not in reached]


def not_drawn(model: nn.Module, factory: Factory | None) -> str:
    """In words, what a fresh twin takes over from ``model`` or is not drawn by chance; empty where all of it is fresh."""
    if isinstance(factory, AsBegan):
        return ""
    if factory is None:
        kept = reinitialise(duplicate(model))
        return (
            f"no reset_parameters draws {_some(kept)} anew; gnnstab.verify(…, factory=…) takes what does"
            if kept
            else ""
        )
    one, two = (fresh_twin(model, seed, factory).state_dict().values() for seed in (0, 1))
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, two, strict=True))
    return "your factory gives the same weights every time" if same else ""


def how_initialised(model: nn.Module, factory: Factory | None) -> str:
    """In words, for the verdict."""
    if isinstance(factory, AsBegan):
        return "with the weights that the run began with"
    if factory is not None:
        return "initialised by your factory"
    kept = reinitialise(duplicate(model)) if next(model.parameters(), None) is not None else []
    if not kept:
        return "initialised by every layer's reset_parameters (gnnstab.verify(…, factory=…) takes an initialisation of your own)"
    return f"initialised by every layer's reset_parameters, except {_some(kept)}, which keep their values (gnnstab.verify(…, factory=…) draws them)"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
