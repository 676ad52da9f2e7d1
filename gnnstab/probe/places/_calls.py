"""What every module of a copy is given and returns within one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn import LayerNorm as GraphLayerNorm
from torch_geometric.nn.aggr import Aggregation

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.stored import is_dense

MOST_CALLS = 4
"""Calls of one module that are kept; a shared module may be called many times."""


@dataclass
class Call:
    """One call of a module."""

    name: str
    module: nn.Module
    entering: list[Tensor]
    leaving: list[Tensor]
    groups: Tensor | None = None
    """(rows,) where an aggregation puts each row that it is given; None for any other module."""

    @property
    def computes(self) -> bool:
        """True for a module with weights of its own that multiplies what it is given: no normalisation, no embedding."""
        own = next(self.module.parameters(recurse=False), None) is not None
        return own and not self.normalises and not isinstance(self.module, (nn.Embedding, nn.EmbeddingBag))

    @property
    def learns(self) -> bool:
        """True for a module that computes with weights that an optimizer may move."""
        return self.computes and any(p.requires_grad for p in self.module.parameters(recurse=False))

    @property
    def normalises(self) -> bool:
        """True for a normalisation, by the name of its class."""
        return "Norm" in type(self.module).__name__

    @property
    def per_graph(self) -> bool:
        """True for a normalisation that takes the mean over the nodes of a graph away."""
        kind = type(self.module).__name__
        known = ("GraphNorm", "InstanceNorm", "PairNorm", "MeanSubtractionNorm")
        return any(name in kind for name in known) or (
            isinstance(self.module, GraphLayerNorm) and self.module.mode == "graph"
        )


@dataclass
class Calls:
    """All calls of one forward, in the order in which they ended."""

    all: list[Call] = field(default_factory=list)
    maker: dict[Any, str] = field(default_factory=dict)
    """Node of the autograd graph → the innermost module that returned its tensor."""

    called: set[str] = field(default_factory=set)

    def name_beginnings(self, model: nn.Module, batch: Mapping[str, Tensor]) -> None:
        """Give operations that no module stands in front of the name of the tensor or parameter that they begin with."""
        for name, tensor in (*model.named_parameters(), *batch.items()):
            if tensor.requires_grad and not is_lazy(tensor):
                node = tensor.grad_fn or tensor.view_as(tensor).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
                self.maker.setdefault(node, name)

    def empty_sums(self) -> set[str]:
        """Aggregations that gave nothing but 0, as without an edge, and their layers: a ReLU behind one is closed by no fault of its own."""
        nothing = [(call.name, call.module) for call in self.all if not any(bool(t.any()) for t in call.leaving)]
        sums = {name for name, module in nothing if isinstance(module, Aggregation)}
        return sums | {name for name, _ in nothing if f"{name}.aggr_module" in sums}

    def fed(self, tensor: Tensor) -> Iterator[Call]:
        """The calls that were given a tensor itself, or a view of all of it."""
        key = (tensor.data_ptr(), tensor.numel())
        for call in self.all:
            if any((t.data_ptr(), t.numel()) == key for t in call.entering):
                yield call


@contextmanager
def watched(model: nn.Module) -> Iterator[Calls]:
    """Collect the calls within the block; the hooks are gone afterwards."""
    calls, count, handles = Calls(), dict[str, int](), []

    def hook(name: str) -> Any:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.called.add(name)
            count[name] = count.get(name, 0) + 1
            if count[name] > MOST_CALLS:
                return
            entering = [t for _, t in tensors_in([*args, *kwargs.values()]) if is_dense(t)]
            leaving = [t for _, t in tensors_in([output]) if is_dense(t)]
            groups = _groups(args, kwargs) if isinstance(module, Aggregation) else None
            calls.all.append(Call(name, module, entering, leaving, groups))
            for tensor in leaving:
                if tensor.grad_fn is not None:
                    calls.maker.setdefault(tensor.grad_fn, name)

        return keep

    try:
        for name, module in hookable(model):
            if name:
                handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _groups(args: Any, kwargs: Any) -> Tensor | None:
    index = args[1] if len(args) > 1 else kwargs.get("index")
    return index if isinstance(index, Tensor) and index.dtype == torch.long and index.dim() == 1 else None
