"""Normalisations of a model: which one stands directly beside a layer, which was not told the graphs, how small these were."""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GraphNorm, GraphSizeNorm, InstanceNorm, LayerNorm, MeanSubtractionNorm, PairNorm

from gnnstab.probe.attaching.hooks import Hook
from gnnstab.probe.error_guard import ErrorGuard
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.torch_private import BatchNorm

Neighbours = dict[str, dict[str, str]]
"""Layer → ``before`` and ``after`` → class name of the normalisation, ``""`` when there is none."""

_PER_GRAPH = (GraphNorm, GraphSizeNorm, InstanceNorm, MeanSubtractionNorm, PairNorm)
"""What normalises over the nodes of every graph when it is given ``batch``, else over all nodes that there are.

`DiffGroupNorm` takes no ``batch``, and `BatchNorm` means to see all graphs.
"""

_DIVIDES = (GraphNorm, InstanceNorm, PairNorm)
"""Of these, what divides by a spread over the nodes of one graph."""

SIGN_ALONE = 2
"""Rows of a batch from which BatchNorm makes ±1 in training, of one row 0."""


class Norms:
    """Watches the normalisations of a model during one forward, or several; the layers are reported to it.

    Only what hands over the very same tensor stands beside a layer: ``conv(norm(x))`` and ``norm(conv(x))``. With
    anything in between, an activation for instance, there is nothing *directly* before or after. A layer that was not
    called is not listed.

    Args:
        model: Whose modules are hooked between `begin` and `end`.
        layers: The recorded layers by name; they are never taken for normalisations.
        forwards: How many forwards are to be watched.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], forwards: float = 1) -> None:
        self.watching = False
        """True within a forward that is watched."""

        self.graphs: list[Tensor] = []
        """(N,) graph of every node, one vector per kind of node, where more is known than the forward is given."""

        self._model = model
        self._own = {id(layer) for layer in layers.values()}
        self._left = forwards
        self._found: Neighbours = {}
        self._without: list[tuple[str, Tensor | None]] = []
        self._several: dict[int, Tensor] = {}
        self._smallest: list[tuple[str, str, Tensor | int]] = []
        self._batches: dict[str, list[tuple[str, int]]] = {}
        self._made_by_norm: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._made_by_layer: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._hooks: list[Hook] = []
        self._handles: list[Any] = []

    @property
    def wanted(self) -> bool:
        """True while another forward is to be watched."""
        return self._left > 0

    @property
    def seen(self) -> int:
        """Grows with what was found."""
        return len(self._found) + len(self._without) + len(self._smallest) + len(self._batches)

    def begin(
        self, called: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error_guard: ErrorGuard
    ) -> None:
        """Hook the normalisations for a forward with these arguments of the model, or of what is wrapped around it.

        Nothing of a model with compiled parts: a hook that comes and goes would have them compiled twice.
        """
        self.stop()
        if any(_is_compiled(module) for module in (called, *self._model.modules())):
            self._left = 0
            return
        self.watching = True
        vectors = [*self.graphs, *batch_vectors(self._model, args, kwargs)]
        # Asked on the device and read when the step is over, so that nothing waits within it.
        self._several = {len(v): v.min() != v.max() for v in vectors if v.numel()}
        for name, module in self._model.named_modules():
            if id(module) not in self._own and "Norm" in type(module).__name__:
                self._hook(name, module, error_guard)

    def end(self) -> None:
        """The forward has returned: leave the normalisations as they were found."""
        self._left -= self.watching
        self.stop()

    def stop(self) -> None:
        """Remove the hooks; a forward that did not return does not count."""
        self.watching = False
        for handle in self._handles:
            handle.remove()
        for hook in self._hooks:
            hook.close()
        self._handles, self._hooks = [], []
        self._made_by_norm, self._made_by_layer, self._several = {}, {}, {}

    def layer_called(self, name: str, entry: Any, leaving: Tensor) -> None:
        """A layer was called with the node states ``entry`` and returned ``leaving``."""
        beside = self._found.setdefault(name, {"before": "", "after": ""})
        beside["before"] = _made(self._made_by_norm, _tensor(entry)) or beside["before"]
        _remember(self._made_by_layer, leaving, name)

    def meta(self) -> dict[str, str]:
        """What was found, as entries of a trace's metadata in JSON; waits for the device.

        ``norms``: `Neighbours`. ``norm_without_batch``: names of the normalisations over the nodes of a graph that were
        called without ``batch`` although there were several graphs. ``norm_smallest``: name of a normalisation that divides
        by a spread over the nodes of a graph → its class and the nodes of the smallest graph that it met; of a BatchNorm in
        training the rows of the largest batch, up to two. Each is left out when it is empty.
        """
        without = list(dict.fromkeys(name for name, several in self._without if several is not None and bool(several)))
        smallest: dict[str, tuple[str, int]] = {}
        # The last batch of an epoch may be small: of a BatchNorm the largest batch counts.
        largest = {name: max(seen, key=lambda one: one[1]) for name, seen in self._batches.items()}
        smallest |= {name: (kind, rows) for name, (kind, rows) in largest.items() if rows <= SIGN_ALONE}
        for name, kind, nodes in self._smallest:
            smallest[name] = min(smallest.get(name, (kind, int(nodes))), (kind, int(nodes)))
        found = {"norms": self._found, "norm_without_batch": without, "norm_smallest": smallest}
        return {key: json.dumps(value) for key, value in found.items() if value}

    def _hook(self, name: str, module: nn.Module, error_guard: ErrorGuard) -> None:
        def body(grad: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entry, kind = _first(args, kwargs), type(module).__name__
            layer = _made(self._made_by_layer, entry)
            if layer:
                self._found[layer]["after"] = kind
            _remember(self._made_by_norm, _tensor(output), kind)
            if entry is not None and module.training and isinstance(getattr(module, "module", module), BatchNorm):
                self._batches.setdefault(name, []).append((kind, entry.numel() // max(1, entry.shape[1])))
            if entry is None or not _is_per_graph(module):
                return
            graphs = _argument(1, "batch", args, kwargs)
            if graphs is None:
                self._without.append((name, self._several.get(len(entry))))
            if isinstance(module, _DIVIDES) and len(entry):
                nodes = _smallest(graphs) if isinstance(graphs, Tensor) and len(graphs) else len(entry)
                self._smallest.append((name, kind, nodes))

        self._hooks.append(Hook(f"the normalisation {name or 'that is the model'}", body, error_guard))
        self._handles.append(module.register_forward_hook(self._hooks[-1], with_kwargs=True))


@contextmanager
def told_the_graphs(model: nn.Module, graphs: Tensor) -> Iterator[None]:
    """Normalisations over the nodes of a graph are given ``batch``, the graph (N,) of every node, where they were called without."""

    def add(module: nn.Module, args: Any, kwargs: Any) -> Any:
        entry = _first(args, kwargs)
        if entry is None or len(entry) != len(graphs) or _argument(1, "batch", args, kwargs) is not None:
            return None
        return args[:1], {**kwargs, "batch": graphs}

    handles = [m.register_forward_pre_hook(add, with_kwargs=True) for m in model.modules() if _is_per_graph(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_vectors(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments called ``batch`` of a forward, int64 vectors: the graph (N,) of every node.

    A keyword, an entry of a container (a PyG ``Batch``), or a positional argument in the place of that name.
    """
    named = {str(position): value for position, value in enumerate(args)}
    for (position, value), name in zip(list(named.items()), arguments_of(model), strict=False):
        if name == "batch":
            named[name] = named.pop(position, value)
    return graphs_in({**named, **kwargs})


def graphs_in(batch: Any) -> list[Tensor]:
    """Everything called ``batch`` in a dictionary, a PyG ``Batch`` or what else holds tensors; int64 vectors (N,)."""
    found = tensors_in(batch)
    return [t for name, t in found if name.split(".")[-1] == "batch" and t.dim() == 1 and t.dtype == torch.int64]


def _smallest(graphs: Tensor) -> Tensor:
    """Nodes of the smallest graph that has any, (); of the graph (N,) of every node, in any order. Nothing waits for a device."""
    ordered = graphs.sort().values
    return (torch.searchsorted(ordered, graphs, right=True) - torch.searchsorted(ordered, graphs)).min()


def arguments_of(model: nn.Module) -> list[str]:
    """Names of the arguments of a forward."""
    try:
        return list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # A forward that is no Python function names no arguments.
        return []


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _is_per_graph(module: nn.Module) -> bool:
    return isinstance(module, _PER_GRAPH) or (isinstance(module, LayerNorm) and module.mode == "graph")


def _remember(made: dict[int, tuple[weakref.ref[Tensor], str]], tensor: Tensor | None, name: str) -> None:
    if tensor is not None:
        made[id(tensor)] = (weakref.ref(tensor), name)


def _made(made: dict[int, tuple[weakref.ref[Tensor], str]], tensor: Tensor | None) -> str:
    reference, name = made.get(id(tensor), (None, ""))
    return name if tensor is not None and reference is not None and reference() is tensor else ""


def _argument(position: int, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _first(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The node states that a module was called with; those of the source nodes for a pair."""
    return _tensor(args[0] if args else kwargs.get("x", next(iter(kwargs.values()), None)))


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return value if isinstance(value, Tensor) else None
