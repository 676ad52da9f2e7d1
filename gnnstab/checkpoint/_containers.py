"""What stands where in a checkpoint: networks, averaged copies, optimizers, progress, hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.characters import counted
from gnnstab.checkpoint._naming import SHADOWS, Unique, key_of, listed, printable
from gnnstab.checkpoint._pickle_stubs import facts_of, is_module, known_facts, module_in, tensors_of
from gnnstab.checkpoint._settings import plain_settings
from gnnstab.checkpoint._tally import Tally
from gnnstab.checkpoint._tensors import readable
from gnnstab.checkpoint._within import LISTS, tensors_within
from gnnstab.errors import LoadError
from gnnstab.unpickling import Record, Storage

MOST_NODES = 1_000_000
"""Nested objects that are looked at before a file is refused."""

DEEPEST = 100
"""Levels of nesting that are looked at before a file is refused."""

_PROGRESS = ("epoch", "step", "global_step", "iteration", "iter", "update", "num_updates", "n_iter", "total_steps")
_BESIDE = frozenset(
    [
        *("lr_scheduler", "lr_schedulers", "scheduler", "schedulers"),
        *("scaler", "grad_scaler", "native_amp_scaling_state", "callbacks", "loops"),
        *("rng_state", "rng_states", "torch_rng_state", "cuda_rng_state", "random_rng_state"),
    ]
)
"""Where training programs keep the state of everything but the network; weights that stand there are scanned, not judged."""


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
    """Averaged copies of the weights (EMA), and other tensors that are scanned for NaN and Inf alone."""

    nameless: list[Network] = field(default_factory=list)
    """Tensors in lists and in objects of which only the place is known."""

    beside: list[Network] = field(default_factory=list)
    """Tensors in plain attributes of a module, and groups without any matrix: scanned for NaN and Inf alone."""

    bare: list[str] = field(default_factory=list)
    """Where storages stand that no tensor gives a shape."""

    seen: set[int] = field(default_factory=set)
    """Identities of what was looked at for the sake of the tensors in it."""

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
        numbers = {name: root.get(name) for name in _PROGRESS}
        found.progress = {name: n for name, n in numbers.items() if type(n) is int and abs(n) < 2**63}
        found.settings = plain_settings(root)
    _sort(root, found, shown, tally)
    if not found.networks:
        found.networks, found.shadows = found.shadows, []
    if not found.networks:
        raise LoadError(f"{shown}: holds {_describe(root)}, no named tensors; save model.state_dict()")
    _set_loose_tensors_aside(found)
    _set_shadows_aside(found)
    names = [".".join((*n.path, key)) for n in found.nameless for key, t in n.tensors.items() if _dimensions(t)]
    if names:
        count = counted(len(names), "tensor")
        found.notes.append(f"{count} in lists and objects, without a weight's name, not judged: {listed(names, 3)}")
    if found.bare:
        count = counted(len(found.bare), "tensor")
        found.notes.append(f"{count} not judged, storages without a shape: {listed(found.bare, 3)}")
    return found


def _sort(root: Any, found: Contents, shown: str, tally: Tally) -> None:
    """Everything that stands in an unpickled object, by what it is."""
    for path, node in _walk(root, shown, tally):
        if isinstance(node, nn.Module):
            known = known_facts(node)
            found.networks.append(Network(path, dict(node.state_dict()), known))
            found.notes.append(f"unpickled the whole module {printable(type(node).__name__)}")
        elif is_module(node):
            found.networks.append(Network(path, tensors_of(node, tally), facts_of(node)))
            found.notes.append(f"read the whole module {printable(node.kind)} without running its code")
        elif _is_optimizer(node):
            found.optimizers.append((".".join(path) or "optimizer", node))
        else:
            _sort_tensors(path, node, found, tally)
        if isinstance(node, nn.Module) or is_module(node):
            _keep_attributes(path, node, found, shown, tally)
    for network in (*found.networks, *found.shadows, *found.nameless, *found.beside):
        # Each name is joined with the path to it.
        tally.spell(len(".".join(network.path)) * (1 + len(network.tensors) + len(network.known)))


def _keep_attributes(path: tuple[str, ...], module: Any, found: Contents, shown: str, tally: Tally) -> None:
    """What a whole module holds beside its state dict: plain attributes, lists and dicts of other modules, passing buffers."""
    state = module.state_dict(keep_vars=True) if isinstance(module, nn.Module) else found.networks[-1].tensors
    named, unique = {id(tensor) for tensor in state.values()}, Unique()
    attributes, data = Network(path, {}), Network(path, {})
    for name, tensor, of_a_graph in tensors_within(module, shown, tally, found.seen):
        if id(tensor) not in named:
            (data if of_a_graph else attributes).tensors[unique(name)] = tensor
    found.beside += [attributes] if attributes.tensors else []
    found.nameless += [data] if data.tensors else []
    if attributes.tensors:
        names = list(attributes.tensors)
        found.notes.append(f"beside the state dict of the module, scanned for NaN and Inf alone: {listed(names, 3)}")


def contents_beside(root: Any, file: str, shown: str, tally: Tally) -> Contents:
    """The parts of a file that stands beside networks: its optimizers, and all other tensors as `Contents.beside`; raises `LoadError` as `contents_of` does."""
    found, part = Contents(), Contents()
    _sort(root, part, shown, tally)
    stem = file.rpartition(".")[0]
    for path, state in part.optimizers:
        found.optimizers.append((stem if path == "optimizer" else f"{stem}.{path}", state))
    groups = (*part.networks, *part.shadows, *part.nameless, *part.beside)
    found.beside = [Network((stem, *group.path), group.tensors) for group in groups]
    if found.optimizers:
        found.notes.append(f"the optimizer's state is that of {file}")
    # The states of random generators are not worth a word.
    if any(tensor.dtype != torch.uint8 for group in groups for tensor in group.tensors.values()):
        found.notes.append(f"beside the network, scanned for NaN and Inf alone: the tensors of {file}")
    return found


def _sort_tensors(path: tuple[str, ...], node: Any, found: Contents, tally: Tally) -> None:
    """What stands in a dict is named as a state dict's; attributes of an object are read beside it; lists say no names."""
    items = node.mapping if isinstance(node, Record) else node
    if isinstance(items, Mapping) and (tensors := _tensors(items.items(), tally)):
        found.networks.append(Network(path, tensors))
    data = isinstance(node, Record) and node.name.startswith("torch_geometric.data.")
    if isinstance(node, Record) and (tensors := _tensors(node.attributes.items(), tally)):
        (found.nameless if data else found.shadows).append(Network(path, tensors))
    listed = (*node.arguments, *node.sequence, node.state) if isinstance(node, Record) else node
    parts = items.items() if isinstance(items, Mapping) else enumerate(listed) if isinstance(listed, LISTS) else ()
    bare = [".".join((*path, key_of(key))) for key, value in parts if isinstance(value, _BARE)]
    tally.spell(sum(map(len, bare)))
    found.bare += bare
    if isinstance(listed, LISTS) and (tensors := _tensors(((str(i), item) for i, item in enumerate(listed)), tally)):
        network = Network(path, tensors)
        (found.shadows if _stands_in(SHADOWS, network) else found.nameless).append(network)


def _walk(root: Any, shown: str, tally: Tally) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Containers and modules in file order; each object once, so that shared and cyclic ones end."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    seen: set[int] = set()
    count = 0
    while pending:
        path, node = pending.pop()
        node = module_in(node) or (_is_optimizer(node) and getattr(node, "attributes", None)) or node
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield path, node
        children = list(_children(node)) if not (_is_optimizer(node) or is_module(node)) else []
        tally.spell(sum(len(path) + len(key) for key, _ in children))
        count += len(children)
        if count > MOST_NODES:
            raise LoadError(f"{shown}: holds more than {MOST_NODES} nested objects; save the state_dict alone")
        if children and len(path) >= DEEPEST:
            raise LoadError(f"{shown}: is nested deeper than {DEEPEST} levels; save the state_dict alone")
        pending.extend(((*path, key), child) for key, child in reversed(children))


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Record):
        for part in (node.mapping, node.attributes, node.arguments, node.sequence, {"state": node.state}):
            yield from _children(part)
    elif isinstance(node, (Mapping, *LISTS)):
        for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            if isinstance(child, _NESTING):
                yield key_of(key), child


_BARE = (Storage, torch.UntypedStorage, torch.storage.TypedStorage)

_NESTING = (Mapping, *LISTS, nn.Module, Record)


def _is_optimizer(node: Any) -> bool:
    """True for the state of an optimizer, and for an optimizer that was saved whole."""
    parts = node.attributes if isinstance(node, Record) else node
    if not isinstance(parts, Mapping):
        return False
    return isinstance(parts.get("param_groups"), (list, tuple)) and isinstance(parts.get("state"), Mapping)


def _tensors(items: Iterable[tuple[Any, Any]], tally: Tally) -> dict[str, Tensor]:
    """The tensors among the items; the states of random generators, which are integers, are none of a network's."""
    tensors: dict[str, Tensor] = {}
    unique = Unique()
    for key, value in items:
        generator = isinstance(key, str) and key in _BESIDE
        if isinstance(value, Tensor) and not (generator and value.dtype == torch.uint8):
            tensors[name := unique(key_of(key))] = value
            tally.spell(len(name))
    return tensors


def _set_loose_tensors_aside(found: Contents) -> None:
    """Groups without any matrix (the state of a norm, a temperature, a best score) are scanned when another group has one."""
    proper, loose = _parted(found.networks, lambda n: any(_dimensions(t) >= 2 for t in n.tensors.values()))
    if proper and loose:
        found.networks = proper
        # A score or a counter that a callback or a scheduler keeps is not worth a word, unless it is NaN.
        kept = [
            Network(n.path, {k: t for k, t in n.tensors.items() if _BESIDE.isdisjoint(n.path) or _is_told(t)})
            for n in loose
        ]
        found.beside += kept
        names = [".".join((*n.path, key)) for n in kept for key in n.tensors]
        if names:
            rest = listed(names, 5, " and {} more")
            found.notes.append(f"not part of a network, scanned for NaN and Inf alone: {rest}")


def _is_told(tensor: Tensor) -> bool:
    return _dimensions(tensor) > 0 or (readable(tensor) and math.isnan(float(tensor.detach())))


def _set_shadows_aside(found: Contents) -> None:
    for names, what in ((SHADOWS, "averaged weights"), (_BESIDE, "tensors")):
        aside, others = _parted(found.networks, partial(_stands_in, names))
        if aside and others:
            found.networks = others
            found.shadows += aside
            found.notes.append(f"{what} in {', '.join(repr('.'.join(n.path)) for n in aside[:5])}: scanned, not judged")


def _stands_in(names: frozenset[str], network: Network) -> bool:
    return any(part.lower() in names for part in network.path)


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
