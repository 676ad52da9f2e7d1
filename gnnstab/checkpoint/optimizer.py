"""Optimizer state: what a state dict of torch.optim holds, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "square_avg")
"""Names of a running mean of squared gradients: AMSGrad, Adam and its family, RMSprop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter as the optimizer knows it."""

    tensors: Mapping[str, Tensor]
    """Its state, e.g. ``exp_avg_sq``; empty for a parameter that never received a gradient."""

    step: float | None
    """Updates so far."""

    settings: Mapping[str, Any]
    """Plain settings of its group: ``lr``, ``eps``, ``betas``, …"""

    group: int
    """Index of its group."""

    name: str | None
    """The parameter's own name, when the optimizer was given names."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of the parameter, or None without state."""
        return next((tuple(t.shape) for name, t in self.tensors.items() if name != "step" and t.dim()), None)


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """One optimizer of a checkpoint."""

    path: str
    """Where it stood in the file, e.g. ``optimizer_states.0``."""

    entries: tuple[Entry, ...] = ()
    """Its parameters in the order of the groups."""

    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def adaptive(self) -> bool:
        """True when any entry has a second moment."""
        return any(name in entry.tensors for entry in self.entries for name in SECOND_MOMENTS)


def read_optimizer(path: str, state: Mapping[Any, Any]) -> OptimizerState:
    """Put a state dict of torch.optim into order; what does not look like one is left out."""
    entries: list[Entry] = []
    for index, group in enumerate(state["param_groups"]):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
            continue
        settings = {str(k): v for k, v in group.items() if isinstance(v, (bool, int, float)) or k == "betas"}
        lr = group.get("lr")
        if isinstance(lr, Tensor) and lr.numel() == 1:
            settings["lr"] = float(lr)
        names = group.get("param_names")
        for position, key in enumerate(group["params"]):
            name = names[position] if isinstance(names, (list, tuple)) and position < len(names) else None
            entries.append(
                _entry(_lookup(state["state"], key), settings, index, name if isinstance(name, str) else None)
            )
    return OptimizerState(path, tuple(entries))


def tensors_in(optimizer: OptimizerState) -> Iterator[Tensor]:
    """Every tensor of the state."""
    for entry in optimizer.entries:
        yield from entry.tensors.values()


def _lookup(state: Mapping[Any, Any], key: Any) -> Any:
    try:
        return state.get(key, {})
    except TypeError:
        return {}


def _entry(state: Any, settings: Mapping[str, Any], group: int, name: str | None) -> Entry:
    if not isinstance(state, Mapping):
        state = {}
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    step = state.get("step")
    if isinstance(step, Tensor):
        step = float(step) if step.numel() == 1 and not step.is_meta else None
    return Entry(tensors, float(step) if isinstance(step, (int, float)) else None, settings, group, name)
