"""Where a fix can take hold in a model: attention layers, stacks of them, sum aggregators; and the copy it works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from gnnstab.errors import FixError
from gnnstab.layers import Layer, layer_of
from gnnstab.randomness import seeded

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def edited_copy(model: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
    """A deep copy to edit; new parameters are drawn from ``seed``, and the caller's random state stays as it was.

    Raises `FixError` when the model cannot be copied.
    """
    with seeded(seed):
        yield duplicate(model)


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy, without the shell of ``torch.compile`` or of a data-parallel wrapper."""
    from gnnstab.probe.replaying.replica import unwrap, whole_copy

    advice = "; a module must not keep open files or locks as attributes"
    return whole_copy(unwrap(model)[0], advice, FixError)


def attention_layers(model: nn.Module, names: Sequence[str] | None = None) -> list[tuple[str, Any]]:
    """Attention layers with their module paths, in order of registration; ``names`` narrows them.

    Raises `FixError` when there is none.
    """
    found = [(n, m) for n, m in model.named_modules() if layer_of(m) is not None]
    return _narrowed(found, names, f"{type(model).__name__} has no attention layer")


def editable_layers(model: nn.Module, edit: str, names: Sequence[str] | None = None) -> list[tuple[str, Any, Layer]]:
    """The `attention_layers` whose kind can be edited so, each with its adapter.

    ``edit`` is a method of `gnnstab.layers.Layer`, or ``stable`` for an exchange for the class of `gnnstab.nn`.
    Raises `FixError` when there is none.
    """
    found = {n: (m, kind) for n, m in attention_layers(model) if (kind := layer_of(m)) and kind.applies(edit)}
    kinds = ", ".join(dict.fromkeys(type(m).__name__ for _, m in attention_layers(model)))
    nothing = f"nothing of {kinds} can be changed so: its kind has no such part"
    chosen = _narrowed([(n, m) for n, (m, _) in found.items()], names, nothing)
    return [(n, m, found[n][1]) for n, m in chosen]


def sum_aggregators(model: nn.Module, names: Sequence[str] | None = None) -> list[tuple[str, Any]]:
    """Message-passing modules that sum raw messages: no attention, no normalisation by degree.

    Raises `FixError` when there is none.
    """
    from torch_geometric.nn import MessagePassing

    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, MessagePassing)
        and module.aggr in ("add", "sum")
        and layer_of(module) is None
        and not hasattr(module, "heads")  # Attention of a class that no adapter describes.
        and not getattr(module, "normalize", False)
    ]
    return _narrowed(found, names, f"{type(model).__name__} has no module that aggregates by a sum")


class Unit(NamedTuple):
    """One module of a stack: what an identity path goes around."""

    name: str
    module: Any
    group: int
    """Depth in the stack; modules side by side share it."""

    types: tuple[str, str]
    """Node types of sources and targets; ``""`` in a homogeneous model."""


class Stack(NamedTuple):
    """Attention layers that feed each other, and the module whose forward runs them."""

    owner: nn.Module
    units: tuple[Unit, ...]


def stacks(model: nn.Module) -> list[Stack]:
    """The model's stacks of at least one attention layer, in order of registration.

    A stack is everything below the nearest ancestor, lists left out, that holds more than one group of layers.
    """
    modules = dict(model.named_modules())
    names = _unit_names(model, modules)
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(_owner(name, names, modules), []).append(name)
    return [Stack(modules[owner], _units(members, modules)) for owner, members in owners.items()]


def _unit_names(model: nn.Module, modules: dict[str, nn.Module]) -> list[str]:
    from torch_geometric.nn import HeteroConv

    names: list[str] = []
    for name, _ in attention_layers(model):
        above = [n for n in _ancestors(name) if isinstance(modules[n], HeteroConv)]
        unit = above[-1] if above else name
        if unit not in names:
            names.append(unit)
    return names


def _owner(name: str, names: list[str], modules: dict[str, nn.Module]) -> str:
    from torch.nn import ModuleDict, ModuleList

    for candidate in _ancestors(name):
        below = {_group_key(n) for n in names if n.startswith(candidate + "." if candidate else "")}
        # A list is never called itself, so that hooks on it would not run.
        if len(below) > 1 and not isinstance(modules[candidate], (ModuleList, ModuleDict)):
            return candidate
    return ""


def _units(members: list[str], modules: dict[str, nn.Module]) -> tuple[Unit, ...]:
    keys: list[str] = []
    units: list[Unit] = []
    for name in members:
        key = _group_key(name)
        if key not in keys:
            keys.append(key)
        units.append(Unit(name, modules[name], keys.index(key), _types(name)))
    return tuple(units)


def _group_key(name: str) -> str:
    """`to_hetero` puts the copies of one layer, one per edge type, under names like ``conv1.user__rates__movie``."""
    return name.rpartition(".")[0] if _types(name) != ("", "") else name


def _types(name: str) -> tuple[str, str]:
    parts = name.rpartition(".")[2].split("__")
    return (parts[0], parts[-1]) if len(parts) >= 3 else ("", "")


def _ancestors(name: str) -> list[str]:
    """Paths above ``name``, nearest first, ending with ``""``."""
    parts = name.split(".")[:-1] if name else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _narrowed(found: list[tuple[str, Any]], names: Sequence[str] | None, nothing: str) -> list[tuple[str, Any]]:
    if names is not None:
        missing = sorted(set(names) - {n for n, _ in found})
        if missing:
            raise FixError(
                f"no such layer for this fix: {', '.join(missing)}; there are: {', '.join(n for n, _ in found)}"
            )
        found = [(n, m) for n, m in found if n in names]
    if not found:
        raise FixError(nothing)
    return found


def add_part(module: Any, name: str, part: nn.Module) -> None:
    """Register a new submodule under ``name``, with the dtype, device and mode of the module.

    Raises `FixError` when the module uses that name itself.
    """
    if getattr(module, name, None) is not None:
        raise FixError(f"{type(module).__name__} has a {name} already; was this fix applied before?")
    # PyG registers absent parts as parameters that are None, and torch assigns no module over a parameter.
    module._parameters.pop(name, None)
    setattr(module, name, part.to(**like(module)).train(module.training))


def exchange(model: nn.Module, name: str, part: nn.Module) -> None:
    """Put another module in the place of the submodule ``name``, in its mode."""
    above, _, last = name.rpartition(".")
    setattr(model.get_submodule(above), last, part.train(model.get_submodule(name).training))


def like(module: nn.Module) -> dict[str, Any]:
    """``device`` and ``dtype`` for new parameters beside the module's own."""
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    return {} if first is None else {"device": first.device, "dtype": first.dtype}
