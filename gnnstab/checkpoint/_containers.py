"""What stands where in a checkpoint: networks, averaged copies, optimizers, progress, hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gnnstab.checkpoint._naming import SHADOWS, Unique, listed, printable
from gnnstab.checkpoint._pickle_stubs import facts_of, is_module, known_facts, tensors_of
from gnnstab.checkpoint._settings import plain_settings
from gnnstab.checkpoint._tally import Tally
from gnnstab.errors import LoadError
from gnnstab.unpickling import Record

MOST_NODES = 1_000_000
"""Nested objects that are looked at before a file is refused."""

DEEPEST = 100
"""Levels of nesting that are looked at before a file is refused."""

_PROGRESS = ("epoch", "step", "global_step", "iteration", "iter", "update", "num_updates", "n_iter", "total_steps")
_SKIPPED = frozenset(
    [
        "lr_scheduler",
        "lr_schedulers",
        "scheduler",
        "schedulers",
        "scaler",
        "grad_scaler",
        "native_amp_scaling_state",
        "callbacks",
        "loops",
        "rng_state",
        "rng_states",
        "torch_rng_state",
        "cuda_rng_state",
        "random_rng_state",
    ]
)


@dataclass(slots=True)
class Network:
    """A group of named tensors that belong together."""

    path: tuple[str, ...]
    """Where it stood in the file; ``()`` for the file itself."""

    tensors: dict[str, Tensor]
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Module name → configuration, for a module that was unpickled whole."""


@dataclass(slots=True)
class Contents:
    """A checkpoint's parts."""

    networks: list[Network] = field(default_factory=list)
    shadows: list[Network] = field(default_factory=list)
    """Averaged copies of the weights (EMA)."""

    optimizers: list[tuple[str, Mapping[Any, Any]]] = field(default_factory=list)
    """(path in the file, state dict)."""

    progress: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def contents_of(root: Any, shown: str, tally: Tally) -> Contents:
    """Sort an unpickled object into its parts.

    Raises `LoadError` for nesting beyond `DEEPEST`, more than `MOST_NODES` objects, more listed than ``tally`` has left, or no named tensor at all.
    """
    found = Contents()
    if isinstance(root, Mapping):
        _read_progress(root, found)
    for path, node in _walk(root, shown):
        if isinstance(node, nn.Module):
            known = known_facts(node)
            found.networks.append(Network(path, dict(node.state_dict()), known))
            found.notes.append(f"unpickled the whole module {printable(type(node).__name__)}")
        elif is_module(node):
            found.networks.append(Network(path, tensors_of(node, tally), facts_of(node)))
            found.notes.append(f"read the whole module {printable(node.kind)} without running its code")
        elif _is_optimizer(node):
            found.optimizers.append((".".join(path) or "optimizer", node))
        elif tensors := _direct_tensors(node):
            found.networks.append(Network(path, tensors))
    if not found.networks:
        raise LoadError(f"{shown}: holds {_describe(root)}, no named tensors; save model.state_dict()")
    _set_loose_tensors_aside(found)
    _set_shadows_aside(found)
    return found


def _walk(root: Any, shown: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Containers and modules in file order; each object once, so that shared and cyclic ones end."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    seen: set[int] = set()
    count = 0
    while pending:
        path, node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        children = list(_children(node)) if not (_is_optimizer(node) or is_module(node)) else []
        count += len(children)
        if count > MOST_NODES:
            raise LoadError(f"{shown}: holds more than {MOST_NODES} nested objects; save the state_dict alone")
        if children and len(path) >= DEEPEST:
            raise LoadError(f"{shown}: is nested deeper than {DEEPEST} levels; save the state_dict alone")
        pending.extend(((*path, key), child) for key, child in reversed(children))


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Record):
        yield from _children(node.mapping)
        yield from _children(node.attributes)
    elif isinstance(node, Mapping):
        for key, child in node.items():
            if isinstance(child, _NESTING) and key not in _SKIPPED:
                yield printable(key), child
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            if isinstance(child, _NESTING):
                yield str(index), child


_NESTING = (Mapping, list, tuple, nn.Module, Record)


def _is_optimizer(node: Any) -> bool:
    return (
        isinstance(node, Mapping)
        and isinstance(node.get("param_groups"), list)
        and isinstance(node.get("state"), Mapping)
    )


def _direct_tensors(node: Any) -> dict[str, Tensor]:
    if not isinstance(node, Mapping):
        return {}
    tensors: dict[str, Tensor] = {}
    unique = Unique()
    for key, value in node.items():
        if isinstance(value, Tensor) and key not in _SKIPPED:
            tensors[unique(printable(key))] = value
    return tensors


def _read_progress(root: Mapping[Any, Any], found: Contents) -> None:
    for name in _PROGRESS:
        value = root.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            found.progress[name] = value
    found.settings = plain_settings(root)


def _set_loose_tensors_aside(found: Contents) -> None:
    """Drop groups without any matrix (a best score kept as a tensor) when another group has one."""
    proper, loose = _parted(found.networks, lambda n: any(_dimensions(t) >= 2 for t in n.tensors.values()))
    if proper and loose:
        found.networks = proper
        names = [".".join((*n.path, key)) for n in loose for key in n.tensors]
        found.notes.append(f"not part of a network, left out: {listed(names, 5, ' and {} more')}")


def _set_shadows_aside(found: Contents) -> None:
    shadows, others = _parted(found.networks, lambda n: any(part.lower() in SHADOWS for part in n.path))
    if shadows and others:
        found.networks, found.shadows = others, shadows
        found.notes.append(
            f"averaged weights in {', '.join(repr('.'.join(n.path)) for n in shadows[:5])}: scanned, not judged"
        )


def _parted(networks: list[Network], first: Callable[[Network], bool]) -> tuple[list[Network], list[Network]]:
    """Those that ``first`` is true of, and the others."""
    parts: tuple[list[Network], list[Network]] = [], []
    for network in networks:
        parts[not first(network)].append(network)
    return parts


def _dimensions(tensor: Tensor) -> int:
    # A lazily initialised parameter has no shape yet; it will have one in a network.
    try:
        return tensor.dim()
    except (RuntimeError, ValueError):
        return 2


def _describe(root: Any) -> str:
    if isinstance(root, Tensor):
        return "a single tensor"
    if isinstance(root, (Mapping, list, tuple)) and not root:
        return f"an empty {type(root).__name__}"
    return f"an object of type {printable(type(root).__name__)}"
