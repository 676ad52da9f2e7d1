"""The optimizer of a run as plain values, from which one for any copy of its model is made."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gnnstab.errors import let_through

_SHOWN = ("momentum", "nesterov", "dampening", "betas", "alpha", "weight_decay", "amsgrad")
"""Settings that are named where they differ from what the class has by default; rate and eps are named in any case."""


@dataclass(frozen=True)
class OwnOptimizer:
    """Class, parameter groups and settings of an optimizer, without its state."""

    kind: Callable[..., torch.optim.Optimizer]
    """The class."""

    groups: tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]
    """Per group the names of its parameters, and its settings."""

    known: frozenset[str]
    """Names of all parameters of the model; those that a fix adds are none of them, and are moved as those of the first group."""

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, model: nn.Module) -> OwnOptimizer | None:
        """That of ``optimizer``, which moves ``model``; None where none like it can be made for a copy, or where it moves nothing.

        One that chooses its steps by itself, such as LBFGS, is none; nor is one whose rates are all 0, as behind the end of a schedule.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            held = tuple(names[id(p)] for p in group["params"] if id(p) in names)
            settings = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            groups.append((held, settings))
        rated = [settings["lr"] for _, settings in groups if isinstance(settings.get("lr"), (int, float, torch.Tensor))]
        if isinstance(optimizer, torch.optim.LBFGS) or len(rated) < len(groups) or not any(held for held, _ in groups):
            return None
        own = cls(type(optimizer), tuple(groups), frozenset(names.values()))
        return own if own.lr > 0 and own._can_be_made(model) else None

    @property
    def lr(self) -> float:
        """The largest rate of all groups."""
        return max(float(settings["lr"]) for _, settings in self.groups)

    @property
    def eps(self) -> float | None:
        """That of the first group; None of a class without."""
        value = self.groups[0][1].get("eps")
        return float(value) if isinstance(value, (int, float)) else None

    def words(self, lr: float, eps: float) -> str:
        """``SGD(lr=5, momentum=0.9)``."""
        settings, usual = self.groups[0][1], inspect.signature(self.kind).parameters
        told = {"lr": lr} | ({} if self.eps is None else {"eps": eps})
        told |= {
            key: settings[key]
            for key in _SHOWN
            if key in settings and key in usual and settings[key] != usual[key].default
        }
        return f"{self.kind.__name__}({', '.join(f'{key}={_short(value)}' for key, value in told.items())})"

    def made(
        self, model: nn.Module, lr: float, eps: float | None = None, more: Iterable[nn.Parameter] = ()
    ) -> torch.optim.Optimizer:
        """A new one for ``model``, a copy of the one it was taken of, with or without a fix.

        ``lr`` is the largest rate, with which those of the other groups go; ``more`` are moved as well.
        """
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups: list[dict[str, Any]] = []
        for names, settings in self.groups:
            changed = {**copy.deepcopy(settings), "lr": float(settings["lr"]) * lr / self.lr}
            if eps is not None and "eps" in settings:
                changed["eps"] = eps
            groups.append({**changed, "params": [own[name] for name in names if name in own]})
        groups[0]["params"] += [*(p for name, p in own.items() if name not in self.known), *more]
        return self.kind([group for group in groups if group["params"]])

    def _can_be_made(self, model: nn.Module) -> bool:
        try:
            self.made(model, self.lr)
        except Exception as error:  # A class of the user's own may ask for anything.
            let_through(error)
            return False
        return True


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
