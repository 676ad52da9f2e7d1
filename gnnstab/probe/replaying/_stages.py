"""Every tensor of a forward pass in the order in which it comes into being, stage by stage inside an attention layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnnstab.layers import Layer, layer_of
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.attaching.softmax_tap import SoftmaxCall, Tap, Untappable
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.layers import multihead_attention, multihead_scores
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.stored import is_dense
from gnnstab.undisturbed import modes_aside


class StageTensor(NamedTuple):
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

    ends: Tensor | None = None
    """(2, E) sources and targets of the edges that an input of the model has rows for."""

    note: str = ""
    """Name of the argument for an input; the reason why stages are missing for an output."""

    detailed: bool = False
    """True inside an attention layer, and for the inputs of the model and the outputs of leaf modules: what a table shows."""


Observer = Callable[[StageTensor], None]


def floats(value: Any) -> list[tuple[str, Tensor]]:
    """The named dense floating-point tensors inside ``value``."""
    named = tensors_in(value)
    return [(name, t) for name, t in named if is_dense(t)]


def observe_inputs(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], observe: Observer) -> None:
    """Report the model's own inputs under the names that its forward has for them."""
    named = named_tensors(tuple(args), kwargs, model)
    for name, tensor in named.items():
        if is_dense(tensor):
            ends = _ends(name, tensor, named)
            rows = "edges" if "edge" in name or ends is not None else "nodes"
            observe(StageTensor(None, 0, "input", tensor, rows=rows, ends=ends, note=name, detailed=True))


def _ends(name: str, tensor: Tensor, named: Mapping[str, Tensor]) -> Tensor | None:
    """The list of edges for each of which a tensor has one row; None for a tensor of nodes."""
    store, _, own = name.rpartition(".")
    for other, edges in named.items():
        fits = edges.dim() == 2 and len(edges) == 2 and tensor.dim() and edges.size(1) == len(tensor) > 0
        if not fits or edges.is_floating_point() or other.rpartition(".")[0] != store:
            continue
        if "edge" in own or (own != "x" and int(edges.max()) + 1 < len(tensor)):
            return edges
    return None


def instrument(model: nn.Module, observe: Observer, prefix: str = "") -> None:
    """Hook every module of ``model`` (a copy that is thrown away) so that ``observe`` sees what it makes."""
    kinds = {name: layer_of(m) for name, m in model.named_modules()}
    attention = {
        name: kind
        for name, kind in kinds.items()
        if kind is not None and kind.stages and kind.own_forward(model.get_submodule(name))
    }
    passing = [name for name, m in model.named_modules() if isinstance(m, MessagePassing)]
    for name, module in hookable(model):
        if name in attention:
            _Attention((prefix + name).rstrip("."), module, attention[name], observe)
        elif (kind := kinds[name]) is not None and kind.fused:
            _Fused((prefix + name).rstrip(".") or None, module, observe)
        elif not _inside(name, attention):
            rows = "" if _inside(name, passing) else "nodes"
            _Module(prefix + name if name else None, module, observe, rows)


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
            self.observe(StageTensor(self.name, self.calls - 1, "input", tensor, rows=self.rows, note=name))

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        fed = tuple(tensor for _, tensor in floats([*args, *kwargs.values()]))
        for _, tensor in floats(output):
            seen = StageTensor(self.name, self.calls - 1, "output", tensor, fed, module, self.rows)
            self.observe(seen._replace(detailed=self.leaf and self.name is not None))


class _Fused(_Module):
    """Watches torch's attention, which runs as one operation: its scores and weights are computed once more."""

    def __init__(self, name: str | None, module: nn.Module, observe: Observer) -> None:
        super().__init__(name, module, observe, "")
        self.leaf = True

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Scores without the masks, whose −∞ is meant; weights with them. In the format of the weights, autocast or not:
        what fused attention keeps in between is wider than half precision."""
        inputs = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        given = tuple(inputs[name] for name in ("query", "key", "value"))
        wide = {name: inputs[name].to(next(module.parameters()).dtype) for name in ("query", "key", "value")}
        others = {name: value for name, value in kwargs.items() if name not in wide}
        with torch.no_grad(), torch.autocast(given[0].device.type, enabled=False):
            score = multihead_scores(module, **wide)
            found = multihead_attention(module, *wide.values(), *args[3:], **others)
        if score is not None and found is not None:
            seen = StageTensor(self.name, self.calls - 1, "score", score, given, module, detailed=True)
            self.observe(seen)
            self.observe(seen._replace(stage="attention", tensor=found[1], fed=(score,), module=None))
        super().after(module, args, kwargs, output[0] if isinstance(output, tuple) else output)


class _Attention:
    """Watches every stage of an attention layer whose forward is PyG's own."""

    def __init__(self, name: str, module: nn.Module, kind: Layer, observe: Observer) -> None:
        self.name, self.module, self.kind, self.observe = name, module, kind, observe
        self.heads = int(getattr(module, "heads", 1))
        self.calls = 0
        self.made: dict[str, Tensor] = {}
        self.given: dict[str, Any] = {}
        self.reason = (
            "" if kind.own_code(module) else f"{type(module).__name__} overrides message: its scores cannot be seen"
        )
        module.register_forward_pre_hook(self.before, with_kwargs=True)
        module.register_forward_hook(self.after)
        for child, stage in kind.stages.items():
            part = getattr(module, child, None)
            # Behind a foreign message the aggregate would be blamed for what the message did.
            if part is not None and not (self.reason and stage == "aggregate"):
                part.register_forward_hook(self._child(stage))
        if not self.reason:
            self._listen()

    def _listen(self) -> None:
        try:
            tap = Tap.attach(self.module, self, kind=self.kind)
        except Untappable as reason:
            self.reason = str(reason)
            return

        def noting(*args: Any, **kwargs: Any) -> Any:
            self.given = kwargs
            return tap(*args, **kwargs)

        tap.replace(noting)

    def see(self, stage: str, tensor: Tensor, fed: Sequence[Tensor] = (), **more: Any) -> None:
        self.made[stage] = tensor
        seen = StageTensor(self.name, self.calls - 1, stage, tensor, tuple(fed), rows="nodes", detailed=True)
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
            heads = 0 if stage in ("skip", "gate") else self.heads
            self.see(stage, output, fed, module=module, rows=rows, heads=heads)

        return after

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        fed = [self.made[name] for name in ("aggregate", "skip", "gate") if name in self.made]
        for _, tensor in floats(output)[:1]:
            self.see("output", tensor, fed, note=self.reason)
        self.made, self.given = {}, {}

    def saw(self, seen: SoftmaxCall) -> None:
        """Show scores and attention; what softmax was given came into being last."""
        on_edges = {"rows": "edges", "heads": self.heads, "targets": seen.index}
        with modes_aside():
            self.see("score", seen.score, self.kind.operands(self.module, self.given, self.made), **on_edges)
            self.see("attention", seen.attention, (seen.score,), **on_edges)

    def returned(self, message: Tensor) -> None:
        """Nothing: the aggregation shows the messages."""

    def failed(self, error: Exception) -> None:
        """A failure of whoever observes is theirs."""
        raise error

    def saw_compiled(self, score: Tensor, attention: Tensor | None) -> None:
        """Nothing: the copy runs without a compiler."""
