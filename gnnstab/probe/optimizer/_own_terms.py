"""Layers in which a node gets nothing of itself but the weights of its neighbours, and such a term added on a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.replaying.evaluating import in_mode
from gnnstab.probe.replaying.replica import mapped, tensors_in

_FEWEST = 4
"""Nodes that are looked at, fewer of which say nothing."""

_SAME = 1e-6
"""Difference of two rows, relative to the largest entry, up to which they are one."""


def without_own_terms(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The layers over one graph of ``model``, a copy, whose output says nothing of a node's own input where it has one neighbour."""
    given: dict[str, tuple[Any, Any]] = {}
    layers = {name: module for name, module in hookable(model) if name}
    handles = [m.register_forward_pre_hook(partial(_keep, given, n), with_kwargs=True) for n, m in layers.items()]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    in_mode(model, False)
    bare: list[str] = []
    for name, (args, kwargs) in given.items():
        # What stands around a layer may add what it lacks.
        inside = [outer for outer in given if name.startswith(f"{outer}.")]
        if not inside and _lacks(layers[name], args, kwargs) and not _added_around(model, layers[name], forward):
            bare.append(name)
    if bare:
        names = tuple(bare)
        verb = "have" if len(bare) > 1 else "has"
        yield Suspect(
            "no-residual", names, f"adding to the output of {listed(names)} a term of the node itself",
            f"{listed(names)} {verb} no term of the node itself: a node gets what its neighbours have, and nothing of its own input",
            partial(_add_terms, names),
        )  # fmt: skip


def _added_around(model: nn.Module, module: nn.Module, forward: Callable[[], Any]) -> bool:
    """True where the input of a layer reaches the model's output past the layer, as in ``x + layer(x)``."""
    taken, lent = list[Tensor](), list[Tensor]()

    def lend(model: nn.Module, args: Any, kwargs: Any) -> None:
        for _, tensor in tensors_in((args, kwargs)):
            if tensor.is_floating_point() and not tensor.requires_grad:
                lent.append(tensor.requires_grad_())  # What the batch holds has no history of its own.

    def take(module: nn.Module, args: Any, kwargs: Any) -> None:
        if (now := _edges_of(args, kwargs)) is not None and not taken:
            taken.append(now[0])

    handles = [
        model.register_forward_pre_hook(lend, with_kwargs=True),
        module.register_forward_pre_hook(take, with_kwargs=True),
        module.register_forward_hook(lambda module, args, output: mapped(output, Tensor.detach)),
    ]
    try:
        ends = [t for _, t in tensors_in(forward()) if t.requires_grad]
        if not ends or not taken or not taken[0].requires_grad:
            return False
        slopes = torch.autograd.grad([t.sum() for t in ends], taken[0], allow_unused=True)
        return slopes[0] is not None and bool((slopes[0] != 0).any())
    finally:
        for handle in handles:
            handle.remove()
        for tensor in lent:
            tensor.requires_grad_(False)


def _edges_of(args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """(x, edges) of a call with one matrix of node features and one edge list over them."""
    values = [*args, *kwargs.values()]
    pairs = [v[0] if isinstance(v, tuple) and len(v) == 2 and v[0] is v[1] else v for v in values]
    tensors = [v for v in pairs if isinstance(v, Tensor)]
    lists = [t for t in tensors if t.dim() == 2 and len(t) == 2 and t.dtype == torch.int64 and t.shape[1]]
    first = next((t for t in tensors if t.dim() == 2 and t.is_floating_point()), None)
    if first is None or len(lists) != 1 or first.layout is not torch.strided:
        return None
    edges = lists[0]
    return (first, edges) if int(edges.min()) >= 0 and int(edges.max()) < len(first) else None


def _keep(given: dict[str, tuple[Any, Any]], name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Keep the first call of a layer over a graph."""
    if name not in given and _edges_of(args, kwargs) is not None:
        given[name] = args, kwargs


def _lacks(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """True where other numbers of a node with one neighbour move nothing at it, and other numbers of the neighbour do."""
    found = _edges_of(args, kwargs)
    assert found is not None
    x, edges = found
    source, target = edges
    if float((torch.bincount(target[source == target], minlength=len(x)) > 0).float().mean()) > 0.5:
        return False  # Loops are such a term.
    # The first edge to each node: one neighbour has the weight 1, whatever the scores are.
    apart = (source != target).nonzero().flatten()
    first = torch.full((len(x),), len(target), device=x.device).scatter_reduce(0, target[apart], apart, "amin")
    chosen = first[first < len(target)]
    own = torch.rand(len(x), generator=torch.Generator().manual_seed(0)).to(x.device) < 0.5
    looked = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    looked[target[chosen]] = own[target[chosen]] & ~own[source[chosen]]
    if int(looked.sum()) < _FEWEST:
        return False

    def run(rows: Tensor | None) -> Tensor:
        def change(tensor: Tensor) -> Tensor:
            if tensor is x:
                return (
                    x.detach() if rows is None else torch.where(rows[:, None], x * 1.5 + x.flip(-1) + 0.5, x).detach()
                )
            if tensor is edges:
                return edges[:, chosen]
            return tensor.detach()[chosen] if tensor.dim() and len(tensor) == edges.shape[1] else tensor.detach()

        output = module(*mapped(tuple(args), change), **mapped(dict(kwargs), change))
        if not isinstance(output, Tensor) or output.shape[:1] != x.shape[:1]:
            raise ValueError("no row for each node")
        return output[looked]

    try:
        with torch.no_grad():
            before, moved, around = run(None), run(own), run(~own)
    except Exception as error:  # A layer that takes no other edges, and says so in any way.
        let_through(error)
        return False
    close = _SAME * float(before.abs().max())
    return bool(((moved - before).abs() <= close).all()) and bool(((around - before).abs() > close).any())


def _add_terms(names: Sequence[str], model: nn.Module) -> None:
    """Hooks that stay on a copy: the input, through fixed random weights where the widths differ, no smaller than the output."""
    for name in names:
        model.get_submodule(name).register_forward_hook(_OwnTerm(), with_kwargs=True)


class _OwnTerm:
    def __init__(self) -> None:
        self._scale: float | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        found = _edges_of(args, kwargs)
        if found is None or not isinstance(output, Tensor) or output.dim() != 2:
            return None
        x = found[0]
        if x.shape[1] != output.shape[1]:
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(x.shape[1], output.shape[1], generator=generator) / math.sqrt(x.shape[1])
            x = x @ weight.to(x)
        if self._scale is None:
            sizes = [float(t.detach().float().square().mean().sqrt()) for t in (output, x)]
            self._scale = max(1.0, sizes[0] / sizes[1]) if 0 < sizes[1] < math.inf and sizes[0] < math.inf else 1.0
        return output + self._scale * x
