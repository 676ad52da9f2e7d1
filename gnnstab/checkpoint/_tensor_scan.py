"""Every tensor of a file looked at once: RMS, NaN and Inf, aliases, tensors that cannot be read."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gnnstab.characters import counted
from gnnstab.checkpoint._correspondence import matching_names
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._meant import MASK, meant
from gnnstab.checkpoint._memory import MappedFiles
from gnnstab.checkpoint._naming import is_statistic, listed
from gnnstab.checkpoint._scan import Statistics, entries, finite, scan
from gnnstab.checkpoint._tensors import identity, readable, unreadable

LARGE_FILE = 256 * 2**20
"""Bytes of a file from which pages that were read are given back to the system."""

LARGEST_COMPARED = 2**22
"""Entries up to which tensors of equal statistics are compared entry by entry."""


LARGEST_SQUARED = 1e75
"""Entries up to which float64 holds the square of a product of two matrices, as a norm of scores takes it."""


_LOOKED_AT = ("", "complex", "nested", "sparse")
"""Of these the entries are looked at, see `unreadable`; of sparse tensors those that they keep."""


@dataclass(slots=True)
class TensorScan:
    """What the pass over all tensors found."""

    parameters: dict[str, Statistics] = field(default_factory=dict)
    """Statistics of every trainable-looking tensor, aliases left out, in file order."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of the same tensors."""

    non_finite: dict[str, int] = field(default_factory=dict)
    """Tensor name → NaN and Inf entries; also of running statistics, averaged weights and optimizer moments."""

    unwritten: set[str] = field(default_factory=set)
    """Those of them whose entries are memory as it was, by the look of them."""

    spoilt: set[tuple[object, ...]] = field(default_factory=set)
    """Views of storage that hold NaN, Inf or numbers beyond `LARGEST_SQUARED`, under whatever names."""

    uninitialised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def scan_tensors(checkpoint: Checkpoint, parameters: Container[str] = ()) -> TensorScan:
    """Look at every tensor of the file once, in pieces; no Inf in one of the ``parameters`` is meant."""
    mapped = MappedFiles() if checkpoint.size > LARGE_FILE else None
    found = TensorScan()
    unread: dict[str, list[str]] = defaultdict(list)
    aliases = _Aliases()
    statistics: list[str] = []
    learned = _Learned(checkpoint, parameters)
    masks: dict[tuple[object, ...], tuple[str, str]] = {}
    for name, tensor in checkpoint.tensors.items():
        why = unreadable(tensor)
        if why not in _LOOKED_AT:
            if why in ("integer", "boolean") and is_statistic(name):
                statistics.append(name)
            else:
                unread[why].append(name)
            continue
        view = identity(tensor)
        if aliases.same_storage(name, tensor) and (view not in masks or not learned(name)):
            continue
        numbers = scan(tensor, mapped)
        if numbers.non_finite or max(-numbers.minimum, numbers.maximum) > LARGEST_SQUARED:
            found.spoilt.add(view)
        if numbers.non_finite:
            if view in masks:
                kind, first = masks.pop(view)  # A weight, and a mask by another of its names alone.
                unread[kind].remove(first)
            elif not learned(name) and (kind := meant(name, tensor, checkpoint.tensors)):
                unread[kind].append(name)
                masks[view] = kind, name
                continue
        found.non_finite[name] = numbers.non_finite
        if numbers.non_finite and _unwritten(tensor):
            found.unwritten.add(name)
        if is_statistic(name):
            statistics.append(name)
        elif why:
            unread[why].append(name)
        elif not aliases.equal_values(name, tensor, numbers):
            found.parameters[name] = numbers
            found.shapes[name] = tuple(tensor.shape)
    once: dict[tuple[object, ...], int] = {}
    for name, tensor in _beside(checkpoint).items():
        why = unreadable(tensor)
        if why not in (*_LOOKED_AT, "integer", "boolean", "uninitialised"):
            unread[why].append(name)
        elif why in _LOOKED_AT:
            view = identity(tensor)
            if view not in once:
                once[view] = scan(tensor, mapped).non_finite
            kind = _meant_beside(name, tensor, checkpoint, learned) if once[view] else ""
            if kind:
                unread[kind].append(name)
            else:
                found.non_finite[name] = once[view]
    found.uninitialised = tuple(unread.pop("uninitialised", ()))
    found.notes = tuple(_notes(aliases, statistics, unread, found.uninitialised))
    return found


def _unwritten(tensor: Tensor) -> bool:
    """True for NaN or Inf in every entry, as torch fills new memory on demand, or beside numbers that no initialisation draws and no update makes: below the normal range, or huge."""
    sound = False
    for part in entries(tensor):
        sizes = part.abs()
        sizes = sizes[sizes.isfinite() & (sizes > 0)]
        if bool(((sizes < torch.finfo(torch.float32).tiny) | (sizes > HUGE)).any()):
            return True
        sound = sound or len(sizes) > 0
    return not sound


HUGE = 1e10
"""Size of an entry that is no weight of anything."""


class _Aliases:
    """Tensors that are in the file under more than one name."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self._views: dict[tuple[object, ...], str] = {}
        self._alone: dict[tuple[object, ...], tuple[str, Tensor] | None] = {}
        self._values: dict[tuple[object, ...], str] = {}

    def same_storage(self, name: str, tensor: Tensor) -> bool:
        return tensor.numel() > 0 and self._known(name, self._views.setdefault(identity(tensor), name))

    def _known(self, name: str, first: str) -> bool:
        if first != name:
            self.pairs.append((name, first))
        return first != name

    def equal_values(self, name: str, tensor: Tensor, numbers: Statistics) -> bool:
        """Constant tensors do not count: two untouched biases are equal without being one."""
        if numbers.non_finite or numbers.minimum == numbers.maximum or not 2 <= tensor.numel() <= LARGEST_COMPARED:
            return False
        alike = (tensor.dtype, tuple(tensor.shape), numbers.rms, numbers.minimum, numbers.maximum)
        if alike not in self._alone:
            self._alone[alike] = name, tensor
            return False
        alone = self._alone[alike]
        if alone is not None:
            self._values[alike, _digest(alone[1])] = alone[0]
            self._alone[alike] = None
        return self._known(name, self._values.setdefault((alike, _digest(tensor)), name))


def _digest(tensor: Tensor) -> bytes:
    """Equal for tensors of equal entries: not all pairs of those with equal statistics can be compared."""
    entries = tensor.detach().double().reshape(-1) + 0.0  # −0 becomes 0, which it equals.
    return hashlib.blake2b(entries.numpy().data).digest()


class _Learned:
    """Tells names of parameters, as far as a file shows them: of known layers, in an optimizer, by their own words."""

    def __init__(self, checkpoint: Checkpoint, parameters: Container[str]) -> None:
        self._checkpoint, self._parameters = checkpoint, parameters

    def __call__(self, name: str) -> bool:
        own = name.rpartition(".")[2].lower()
        by_word = _LEARNED.search(own) or (_WEIGHT.search(own) and not MASK.search(own.removeprefix("bias_")))
        return bool(by_word) or name in self._parameters or name in self._trained

    @cached_property
    def _trained(self) -> set[str]:
        readable = {n: tuple(t.shape) for n, t in self._checkpoint.tensors.items() if unreadable(t) in ("", "complex")}
        shapes = {
            prefix: [(name, readable[name]) for name in names if name in readable and not is_statistic(name)]
            for prefix, names in self._checkpoint.networks.items()
        }
        return {name for state in self._checkpoint.optimizers for name in matching_names(state, shapes)[0].values()}


_WEIGHT = re.compile("weight|kernel|table$|embedding|^att(_|$)|^bias_")
_LEARNED = re.compile("(weight|token|tokens|embed|emb|embedding|embeddings)$")
"""In the own name of a tensor that is learned; the second also beside a mask's word, as in ``mask_token``."""


def _meant_beside(name: str, tensor: Tensor, checkpoint: Checkpoint, learned: _Learned) -> str:
    """`meant` of what stands beside the networks: averaged weights are what the weights are that they copy."""
    parts = name.split(".")
    original = next((n for i in range(1, len(parts)) if (n := ".".join(parts[i:])) in checkpoint.tensors), name)
    if name in checkpoint.shadows and tensor.numel() == 1 and not bool(torch.isnan(tensor).any()):
        copied = original != name and checkpoint.tensors[original]
        broken = isinstance(copied, Tensor) and readable(copied) and finite(copied)
        return "" if broken else "an Inf that stands alone"
    if learned(original):
        return ""
    optimizers = {optimizer.path for optimizer in checkpoint.optimizers}
    kept = any(".".join(parts[:i]) in optimizers for i in range(1, len(parts)))
    return meant(name, tensor, checkpoint.shadows, masks=not kept)


def _beside(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Averaged weights, optimizer moments and rates that are no numbers, under names that say where they stood."""
    moments = {
        f"{optimizer.path}.{index}.{key}": tensor
        for optimizer in checkpoint.optimizers
        for index, entry in enumerate(optimizer.entries)
        for key, tensor in entry.tensors.items()
    }
    rates = {
        f"{optimizer.path}.param_groups.{entry.group}.{key}": torch.tensor(value)
        for optimizer in checkpoint.optimizers
        for entry in optimizer.entries
        for key, value in _numbers(entry.settings)
        # Other settings may be without bound on purpose.
        if math.isnan(value) or (key == "lr" and math.isinf(value))
    }
    return {**rates, **checkpoint.shadows, **moments}


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The settings of a group that are floats, and those in pairs of them (``betas``)."""
    for key, value in settings.items():
        values = enumerate(value[:2]) if isinstance(value, (list, tuple)) else ()
        yield from (
            [(key, value)]
            if isinstance(value, float)
            else ((f"{key}.{i}", x) for i, x in values if isinstance(x, float))
        )


def _notes(
    aliases: _Aliases, statistics: list[str], unread: Mapping[str, list[str]], lazy: tuple[str, ...]
) -> list[str]:
    notes = []
    if aliases.pairs:
        second, first = aliases.pairs[0]
        some = counted(len(aliases.pairs), "tensor")
        notes.append(f"{some} saved under a second name, counted once (e.g. {second} = {first})")
    if statistics:
        notes.append(f"{counted(len(statistics), 'running statistic')}, not a weight: {listed(statistics, 4)}")
    for why, names in unread.items():
        notes.append(f"{counted(len(names), 'tensor')} not judged, {why}: {listed(names, 3)}")
    if lazy:
        some = counted(len(lazy), "parameter")
        notes.append(f"{some} saved before the first forward pass gave a shape: {listed(lazy, 3)}")
    return notes
