"""Tensors of a checkpoint → a model that the user built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._naming import listed, printable
from gnnstab.checkpoint._tensors import unreadable
from gnnstab.errors import CheckpointMismatch
from gnnstab.layers import layer_of

MOST_LISTED = 5
"""Names shown of each kind; the number of all is always told."""


def load_into(model: nn.Module, checkpoint: Checkpoint, *, prefix: str | None = None) -> tuple[str, ...]:
    """Copy the file's tensors into ``model`` and say what matched.

    The names may differ by a prefix, as when the model is the graph part of a larger network: the prefix under which most
    tensors of attention layers fit is used, or ``prefix`` (with its dot) when given. Tensors that only one side has are
    counted and listed.

    Raises `CheckpointMismatch`, before anything is copied, when nothing fits, a shape differs or a tensor of an
    attention layer of the model is not in the file.
    """
    wanted = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    vital = {name for name in wanted if any(name.startswith(layer) for layer in _attention(model))}
    fits = [(prefix, "")] if prefix is not None else best_prefixes(wanted, checkpoint.tensors, vital)
    in_front, behind = fits[0]
    pairs = {name: found for name in wanted if (found := in_front + name.removeprefix(behind)) in checkpoint.tensors}
    notes = [_prefix_note(in_front, behind)] if in_front or behind else []
    notes += [f"'{other or 'no prefix'}' fits as well and was not used" for other, _ in fits[1:4]]
    _check(wanted, checkpoint, pairs, vital, in_front)
    model.load_state_dict({name: checkpoint.tensors[found] for name, found in pairs.items()}, strict=False)
    used = set(pairs.values())
    notes.append(f"{len(pairs)} of the model's {len(wanted)} tensors read from the file")
    notes += _listed("only in the model, left as the factory made them", [n for n in wanted if n not in pairs])
    notes += _listed("only in the file, not used", [n for n in checkpoint.tensors if n not in used])
    return tuple(notes)


def layers_in(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Name in the file → name in the model, of the attention layers that `load_into` fills; the file may hold others."""
    wanted = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    layers = _attention(model)
    vital = {name for name in wanted if any(name.startswith(layer) for layer in layers)}
    in_front, behind = best_prefixes(wanted, checkpoint.tensors, vital)[0]
    # A model that is one bare layer is named as the probe names it.
    return {(in_front + n.removeprefix(behind)).rstrip("."): n.rstrip(".") or type(model).__name__ for n in layers}


def _attention(model: nn.Module) -> list[str]:
    """How the names of the tensors of each attention layer begin."""
    layers = [name for name, m in model.named_modules(remove_duplicate=False) if layer_of(m) is not None]
    return [f"{name}." if name else "" for name in layers]


def best_prefixes(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor], vital: set[str]) -> list[tuple[str, str]]:
    """(prefix that the file's names have in front, prefix that the model's names have in front); several when they tie.

    Each pair of names that end alike votes; tensors of attention layers of equal shape count most, then any of equal shape.
    Among equals the shorter prefix comes first, then the one that is first in the file.
    """
    votes: Counter[tuple[str, str]] = Counter()
    by_last: dict[str, list[str]] = {}
    for name in stored:
        by_last.setdefault(_last_parts(name), []).append(name)
    for name, tensor in wanted.items():
        weight = 1_000_000 if name in vital else 1
        for other in by_last.get(_last_parts(name), ()):
            if f".{other}".endswith(f".{name}"):
                offset = other.removesuffix(name), ""
            elif name.endswith(f".{other}"):
                offset = "", name.removesuffix(other)
            else:
                continue
            same = unreadable(tensor) == "uninitialised" or _shape(tensor) == _shape(stored[other])
            votes[offset] += weight if same else 0
    ranked = sorted(votes, key=lambda offset: (-votes[offset], len(offset[0]) + len(offset[1])))
    return [offset for offset in ranked if votes[offset] == votes[ranked[0]]] or [("", "")]


def _last_parts(name: str) -> str:
    return ".".join(name.rsplit(".", 2)[-2:])


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if unreadable(tensor) == "uninitialised" else tuple(tensor.shape)


def _check(
    wanted: Mapping[str, Tensor], checkpoint: Checkpoint, pairs: Mapping[str, str], vital: set[str], in_front: str
) -> None:
    where = checkpoint.path
    if not pairs:
        mine, theirs = next(iter(wanted), "nothing"), next(iter(checkpoint.tensors))
        raise CheckpointMismatch(
            f"{where}: no name of the file fits the model (file: {theirs}; model: {printable(mine)})"
        )
    for name, found in pairs.items():
        shape, stored = _shape(wanted[name]), _shape(checkpoint.tensors[found])
        if shape is not None and stored is not None and shape != stored:
            raise CheckpointMismatch(f"{where}: {found} has shape {stored}, the model's {name} {shape}")
        why = unreadable(checkpoint.tensors[found])
        if why not in ("", "integer", "boolean", "complex"):
            raise CheckpointMismatch(f"{where}: {found} is {why}; the model's {name} cannot be filled from it")
    lacking = [name for name in wanted if name in vital and name not in pairs]
    if lacking:
        under = f" under the prefix '{in_front}'" if in_front else ""
        raise CheckpointMismatch(
            f"{where}: lacks {len(lacking)} tensors of attention layers of the model{under}, first {lacking[0]} {_shape(wanted[lacking[0]])}"
        )


def _prefix_note(in_front: str, behind: str) -> str:
    return f"the file's names begin with '{in_front}'" if in_front else f"the model's names begin with '{behind}'"


def _listed(what: str, names: list[str]) -> list[str]:
    return [f"{len(names)} {what}: {listed(names, MOST_LISTED)}"] if names else []
