"""Optimizer state: what a state dict of torch.optim holds, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gnnstab.checkpoint._naming import printable
from gnnstab.checkpoint._tally import Tally
from gnnstab.checkpoint._tensors import has_shape

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
        shaped = (t for name, t in self.tensors.items() if name != "step" and has_shape(t))
        return next((tuple(t.shape) for t in shaped if t.dim()), None)


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """One optimizer of a checkpoint."""

    path: str
    """Where it stood in the file, e.g. ``optimizer_states.0``."""

    entries: tuple[Entry, ...] = ()
    """Its parameters in the order of the groups."""

    @property
    def adaptive(self) -> bool:
        """True when any entry has a second moment."""
        return any(name in entry.tensors for entry in self.entries for name in SECOND_MOMENTS)


def read_optimizer(path: str, state: Mapping[Any, Any], tally: Tally | None = None) -> OptimizerState:
    """Put a state dict of torch.optim into order; what does not look like one is left out.

    Raises `LoadError` when it lists more than ``tally`` has left.
    """
    count, spell = (tally.add, tally.spell) if tally is not None else (_unlimited, _unlimited)
    entries: list[Entry] = []
    for index, group in enumerate(state["param_groups"]):
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), (list, tuple)):
            count(1)
            continue
        count(1 + len(group) + len(group["params"]))
        numbers = {printable(key): plain_number(value) for key, value in group.items()}
        settings: dict[str, Any] = {key: value for key, value in numbers.items() if value is not None}
        settings["betas"] = group.get("betas")
        names = group.get("param_names")
        for position, key in enumerate(group["params"]):
            name = names[position] if isinstance(names, (list, tuple)) and position < len(names) else None
            kept = _lookup(state["state"], key)
            count(len(kept))
            spell(len(kept) * len(path))
            tensors = {printable(key): value for key, value in kept.items() if isinstance(value, Tensor)}
            name = name if isinstance(name, str) else None
            entries.append(Entry(tensors, plain_number(kept.get("step")), settings, index, name))
    return OptimizerState(path, tuple(entries))


def _unlimited(count: int) -> None:
    """Of a live optimizer everything is taken."""


def _lookup(state: Mapping[Any, Any], key: Any) -> Mapping[Any, Any]:
    """What the optimizer keeps of a parameter, if anything."""
    try:
        kept = state.get(key)
    except TypeError:  # a list in the place of its number has no hash
        kept = None
    return kept if isinstance(kept, Mapping) else {}


def plain_number(value: Any) -> float | None:
    """A number, or the entry of a tensor that holds one, as a float; None for anything else."""
    try:
        if isinstance(value, Tensor):
            if not has_shape(value) or value.is_meta or value.numel() != 1:
                return None
            return float(value.detach())  # Torch warns of a parameter that becomes a plain number.
        return float(value) if isinstance(value, (int, float)) else None
    except (OverflowError, RuntimeError, TypeError):
        return None
