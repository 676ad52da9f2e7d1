"""The one way to open a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

from torch import Tensor

from gnnstab.characters import counted
from gnnstab.checkpoint._containers import Contents, Network, contents_beside, contents_of
from gnnstab.checkpoint._naming import LONGEST_KEY, SHADOWS, Unique, listed, printable, unwrapped_names
from gnnstab.checkpoint._optimizer import OptimizerState, read_optimizer
from gnnstab.checkpoint._reading import read_safetensors, read_torch
from gnnstab.checkpoint._shards import joined, read_all, shards_of
from gnnstab.checkpoint._sniffing import regular_file, sniff
from gnnstab.checkpoint._tally import Tally
from gnnstab.checkpoint._within import tensors_within
from gnnstab.errors import LoadError

FORMATS = {"zip": "torch", "legacy": "torch before 1.6", "pickle": "pickle", "safetensors": "safetensors"}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: named tensors and what stood beside them."""

    path: str
    """As the user gave it, made printable."""

    format: str
    """One of the values of `FORMATS`."""

    size: int
    """Bytes of the file."""

    tensors: Mapping[str, Tensor]
    """Full name → tensor, in file order, wrappers such as ``module.`` removed, networks told apart by a prefix."""

    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Network prefix (``""`` for a single network) → its names in `tensors`."""

    shadows: Mapping[str, Tensor] = field(default_factory=dict)
    """Averaged copies of the weights (EMA), and what stands beside networks and in optimizers: scanned for NaN and Inf, not judged."""

    optimizers: tuple[OptimizerState, ...] = ()
    progress: Mapping[str, int] = field(default_factory=dict)
    """``epoch``, ``step``, ``global_step``, … as found."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Plain values of ``args`` / ``hyper_parameters`` / ``config``, keyed ``args.lr``."""

    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Layer name → configuration; only from a module that was unpickled whole (``unsafe=True``)."""

    notes: tuple[str, ...] = ()
    """What was unwrapped, renamed or left out on the way in."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a file holds that stands beside the one of a network."""

    contents: Contents
    lost: list[Tensor]
    """Attributes of tensors, and keys."""


def read_beside(path: str | os.PathLike[str], *, unsafe: bool = False) -> Beside:
    """A file of an optimizer, a scheduler or the like for `load`; raises as `load` does."""
    shown = printable(str(path), 500)
    lost: list[Tensor] = []
    root = _read(path, unsafe, lost)[1]
    return Beside(contents_beside(root, printable(Path(path).name), shown, Tally(shown)), lost)


def load(path: str | os.PathLike[str], *, unsafe: bool = False, beside: Sequence[Beside] = ()) -> Checkpoint:
    """Open a ``.pt``, ``.pth``, ``.ckpt`` or ``.safetensors`` file, or one of unknown suffix with such a content.

    One of several files of a model, or their index, opens all of them. ``beside`` are files with the states of what trains this
    network. No code from a file runs unless ``unsafe`` is set, which also reads a module that was pickled whole.

    Raises `LoadError` for a file that is missing, damaged, something else or beyond the limits of the documentation,
    `UnsafeFileError` when reading it would run code, `MissingExtra` when safetensors is not installed.
    """
    shown = printable(str(path), 500)
    files = shards_of(Path(path))
    lost: list[Tensor] = [tensor for other in beside for tensor in other.lost]
    read = read_all(files, lambda file: _read(file, unsafe, lost, mapped=len(files) > 1))
    kind, root = read[0]
    if files != [Path(path)]:
        root = joined(Path(path), files, [part for _, part in read])
    try:
        tally = Tally(shown)
        contents = contents_of(root, shown, tally)
        if len(files) > 1:
            contents.notes.append(f"{len(files)} files of one model: {files[0].name} to {files[-1].name}")
        for other in beside:
            contents.optimizers += other.contents.optimizers
            contents.beside += other.contents.beside
            contents.notes += other.contents.notes
        checkpoint = _assemble(shown, kind, sum(file.stat().st_size for file in files), contents, root, tally)
        return _with_lost(checkpoint, contents, lost)
    except MemoryError:
        raise LoadError(f"{shown}: asks for more memory than there is") from None


def _read(path: str | os.PathLike[str], unsafe: bool, lost: list[Tensor], *, mapped: bool = False) -> tuple[str, Any]:
    """Kind and content of one file; see `read_torch`."""
    file = regular_file(path)
    kind = sniff(file)
    if kind == "safetensors":
        return kind, read_safetensors(file, mapped=mapped)
    return kind, read_torch(file, kind, unsafe=unsafe, mapped=mapped, lost=lost)


def _assemble(shown: str, kind: str, size: int, contents: Contents, root: Any, tally: Tally) -> Checkpoint:
    notes = list(contents.notes)
    if isinstance(root, Mapping) and "pytorch-lightning_version" in root:
        notes.append("Lightning checkpoint")
    tensors: dict[str, Tensor] = {}
    unique = Unique()
    networks: dict[str, tuple[str, ...]] = {}
    shadows: dict[str, Tensor] = {}
    told_apart = Unique()
    for group in (*contents.shadows, *contents.beside):
        shadows.update({told_apart(".".join((*group.path, name))): tensor for name, tensor in group.tensors.items()})
    known: dict[str, Mapping[str, Any]] = {}
    for prefix, network in zip(_prefixes(contents.networks, notes), contents.networks, strict=True):
        named = _unwrap(network, notes)
        named, averaged = _split_shadow(named, notes)
        shadows.update({told_apart(prefix + name): tensor for name, tensor in averaged.items()})
        mine = {unique(prefix + name): tensor for name, tensor in named.items()}
        networks[prefix.rstrip(".")] = tuple(mine)
        tensors.update(mine)
        known.update({prefix + name: facts for name, facts in network.known.items()})
    if cut := sum(len(name) > LONGEST_KEY for name in tensors):
        notes.append(f"{cut} names of more than {LONGEST_KEY} characters: no layer is looked for there")
    if kind == "safetensors" and not contents.optimizers:
        notes.append("safetensors hold weights alone: no optimizer, no step")
    optimizers, once = [], Unique()
    for name, state in ((once(name), state) for name, state in contents.optimizers):
        tally.add(len(tensors))  # Each is compared with all of them.
        optimizers.append(read_optimizer(name, state, tally))
        kept = {id(tensor) for entry in optimizers[-1].entries for tensor in entry.tensors.values()}
        within = tensors_within(state, shown, tally, contents.seen)
        shadows.update({told_apart(f"{name}.{path}"): t for path, t, _ in within if id(t) not in kept})
    return Checkpoint(
        path=shown,
        format=FORMATS[kind],
        size=size,
        tensors=tensors,
        networks=networks,
        shadows=shadows,
        optimizers=tuple(optimizers),
        progress=contents.progress,
        settings=contents.settings,
        known=known,
        notes=tuple(notes),
    )


def _with_lost(checkpoint: Checkpoint, contents: Contents, lost: list[Tensor]) -> Checkpoint:
    """The checkpoint with a note on tensors that stand nowhere else than in attributes of others, or as keys."""
    entries = (entry.tensors for optimizer in checkpoint.optimizers for entry in optimizer.entries)
    groups = (checkpoint.tensors, checkpoint.shadows, *entries, *(group.tensors for group in contents.nameless))
    known = {id(tensor) for group in groups for tensor in group.values()}
    if not (count := len({id(tensor) for tensor in lost} - known)):
        return checkpoint
    note = f"{counted(count, 'tensor')} not judged, attributes of tensors or keys of dicts"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _prefixes(networks: list[Network], notes: list[str]) -> list[str]:
    """One prefix per network: nothing for a single one, else the part of the path that differs."""
    if len(networks) == 1:
        if networks[0].path:
            notes.append(f"read from the entry '{'.'.join(networks[0].path)}'")
        return [""]
    shared = commonprefix([network.path for network in networks])  # noqa: RUF071 - tuples of keys, no paths
    if shared:
        notes.append(f"read from the entry '{'.'.join(shared)}'")
    names = [".".join(network.path[len(shared) :]) for network in networks]
    notes.append(f"{len(networks)} groups of tensors: {listed([repr(name) for name in names], 6)}")
    return [name + "." if name else "" for name in names]


def _unwrap(network: Network, notes: list[str]) -> dict[str, Tensor]:
    names, removed = unwrapped_names(list(network.tensors))
    if removed:
        notes.append(f"removed the prefix {', '.join(repr(prefix) for prefix in removed)} from the names")
        stripped = unwrapped_names([*network.tensors, *(f"{name}.*" for name in network.known)])[0]
        layers = (name[:-2] for name in stripped[len(names) :])
        network.known = dict(zip(layers, network.known.values(), strict=True))
    return dict(zip(names, network.tensors.values(), strict=True))


def _split_shadow(named: dict[str, Tensor], notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Set aside names under ``ema.`` (or the like) that mirror the others."""
    for prefix in sorted({name.partition(".")[0] for name in named} & SHADOWS):
        mirrored = {n: t for n, t in named.items() if n.startswith(prefix + ".")}
        others = {n: t for n, t in named.items() if n not in mirrored}
        twins = sum(name[len(prefix) + 1 :].removeprefix("module.") in others for name in mirrored)
        if others and twins * 2 > len(mirrored):
            notes.append(f"{len(mirrored)} averaged tensors under '{prefix}.': scanned, not judged")
            return others, mirrored
    return named, {}
