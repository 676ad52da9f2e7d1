"""Every tensor of a forward pass in the order in which it comes into being, stage by stage inside a `TransformerConv`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing, TransformerConv
from torch_geometric.utils import softmax

from gnnstab.probe.replica import tensors_in
from gnnstab.probe.statistics.unit_input import is_plain

STAGE_OF_CHILD = {
    "lin_query": "query",
    "lin_key": "key",
    "lin_value": "value",
    "lin_edge": "edge",
    "aggr_module": "aggregate",
    "lin_skip": "skip",
    "lin_beta": "gate",
}
"""Which stage the output of each child of a `TransformerConv` is."""


class Seen(NamedTuple):
    """One floating-point tensor at the moment it was made."""

    layer: str | None
    """Module path; None for the model itself."""

    call: int
    """0 for the first call of this layer in the forward pass."""

    stage: str
    """One of `gnnstab.records.STAGES`."""

    tensor: Tensor

    fed: tuple[Tensor, ...] = ()
    """What it was computed from, parameters aside; empty for an input."""

    module: nn.Module | None = None
    """The module whose own parameters took part."""

    rows: str = ""
    """What the first axis counts: ``nodes``, ``edges``, or ``""`` when that cannot be told."""

    heads: int = 0
    """Number of heads when the other axes hold (heads, …) in order, else 0."""

    targets: Tensor | None = None
    """(E,) targets, where the rows are edges and the targets are known."""

    note: str = ""
    """Name of the argument for an input; the reason why stages are missing for an output."""

    detailed: bool = False
    """True inside a `TransformerConv`, and for the inputs of the model and the outputs of leaf modules: what a table shows."""


Observer = Callable[[Seen], None]


def floats(value: Any) -> list[tuple[str, Tensor]]:
    """The named dense floating-point tensors inside ``value``."""
    named = tensors_in(value)
    return [(name, t) for name, t in named if t.is_floating_point() and t.layout is torch.strided]


def observe_inputs(args: Sequence[Any], kwargs: dict[str, Any], observe: Observer) -> None:
    """Report the model's own inputs."""
    single = len(args) == 1 and not isinstance(args[0], Tensor)
    named = floats(args[0] if single else list(args)) + floats(kwargs)
    for name, tensor in named:
        rows = "edges" if "edge" in name else "nodes"
        observe(Seen(None, 0, "input", tensor, rows=rows, note=name, detailed=True))


def instrument(model: nn.Module, observe: Observer, prefix: str = "") -> None:
    """Hook every module of ``model`` (a copy that is thrown away) so that ``observe`` sees what it makes."""
    attention = {name: m for name, m in model.named_modules() if _has_stages(m)}
    passing = [name for name, m in model.named_modules() if isinstance(m, MessagePassing)]
    for name, module in model.named_modules():
        if name in attention:
            _Attention((prefix + name).rstrip("."), module, observe)
        elif not _inside(name, attention):
            rows = "" if _inside(name, passing) else "nodes"
            _Module(prefix + name if name else None, module, observe, rows)


def _has_stages(module: nn.Module) -> bool:
    """A `TransformerConv`, or a subclass that keeps its forward."""
    kind: Any = type(module)
    return isinstance(module, TransformerConv) and kind.forward is TransformerConv.forward


def _inside(name: str, parents: Any) -> bool:
    return any(name != parent and name.startswith(f"{parent}." if parent else "") for parent in parents)


class _Module:
    """Watches the inputs and outputs of any module."""

    def __init__(self, name: str | None, module: nn.Module, observe: Observer, rows: str) -> None:
        self.name, self.observe, self.rows = name, observe, rows
        self.leaf = isinstance(module, MessagePassing) or next(module.children(), None) is None
        self.calls = 0
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        module.register_forward_hook(self.after, with_kwargs=True)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls += 1
        for name, tensor in () if self.name is None else floats([*args, *kwargs.values()]):
            self.observe(Seen(self.name, self.calls - 1, "input", tensor, rows=self.rows, note=name))

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        fed = tuple(tensor for _, tensor in floats([*args, *kwargs.values()]))
        for _, tensor in floats(output):
            seen = Seen(self.name, self.calls - 1, "output", tensor, fed, module, self.rows)
            self.observe(seen._replace(detailed=self.leaf and self.name is not None))


class _Attention:
    """Watches every stage of a `TransformerConv`."""

    def __init__(self, name: str, conv: TransformerConv, observe: Observer) -> None:
        self.name, self.conv, self.observe = name, conv, observe
        self.calls = 0
        self.made: dict[str, Tensor] = {}
        self.reason = "" if is_plain(conv) else f"{type(conv).__name__} overrides message: its scores cannot be seen"
        conv.register_forward_pre_hook(self.before, with_kwargs=True)
        conv.register_forward_hook(self.after)
        for child, stage in STAGE_OF_CHILD.items():
            module = getattr(conv, child, None)
            # Behind a foreign message the aggregate would be blamed for what the message did.
            if module is not None and not (self.reason and stage == "aggregate"):
                module.register_forward_hook(self._child(stage))
        if not self.reason:
            conv.message = self.message

    def see(self, stage: str, tensor: Tensor, fed: Sequence[Tensor] = (), **more: Any) -> None:
        self.made[stage] = tensor
        seen = Seen(self.name, self.calls - 1, stage, tensor, tuple(fed), rows="nodes", detailed=True)
        self.observe(seen._replace(**more))

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls += 1
        self.made = {}
        names = ("x", "edge_index", "edge_attr")
        for name, tensor in floats({**dict(zip(names, args, strict=False)), **kwargs}):
            on_edges = name.startswith("edge")
            self.see("input", tensor, rows="edges" if on_edges else "nodes", note=name, detailed=not on_edges)

    def _child(self, stage: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            fed = [tensor for _, tensor in floats(list(args))]
            if stage == "aggregate":
                fed += [self.made[name] for name in ("attention", "value") if name in self.made]
            rows = "edges" if stage == "edge" else "nodes"
            heads = 0 if stage in ("skip", "gate") else int(self.conv.heads)
            self.see(stage, output, fed, module=module, rows=rows, heads=heads)

        return after

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        fed = [self.made[name] for name in ("aggregate", "skip", "gate") if name in self.made]
        for _, tensor in floats(output)[:1]:
            self.see("output", tensor, fed, note=self.reason)
        self.made = {}

    def message(
        self,
        query_i: Tensor,
        key_j: Tensor,
        value_j: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """`TransformerConv.message` with its intermediate results shown; same operations, same dtypes, same values."""
        conv = self.conv
        fed: tuple[Tensor, ...] = (query_i, key_j)
        if conv.lin_edge is not None:
            edge_attr = conv.lin_edge(edge_attr).view(-1, conv.heads, conv.out_channels)
            fed = (query_i, key_j, edge_attr)
            key_j = key_j + edge_attr
        on_edges = {"rows": "edges", "heads": int(conv.heads), "targets": index}
        alpha = (query_i * key_j).sum(dim=-1) / math.sqrt(conv.out_channels)
        self.see("score", alpha, fed, **on_edges)
        alpha = softmax(alpha, index, ptr, size_i)
        self.see("attention", alpha, (self.made["score"],), **on_edges)
        conv._alpha = alpha
        alpha = F.dropout(alpha, p=conv.dropout, training=conv.training)
        out = value_j if edge_attr is None else value_j + edge_attr
        return out * alpha.view(-1, conv.heads, 1)
