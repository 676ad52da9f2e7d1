"""Kinds of nodes that a graph of several kinds is given with one row for all of them, and each node given a vector of its own on a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnnstab.probe.optimizer._suspects import Suspect, listed

_SAME = 1e-6
"""Difference of two rows, relative to the largest entry, up to which they are one."""

_OTHER = 0.1
"""Standard deviation of what is added to all parameters: a table of zeros is then no table of zeros."""


def alike_kinds(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The kinds that the first layer over several kinds of nodes is given alike, whatever the weights of ``model``, a copy, are."""
    given: dict[str, dict[str, torch.Size]] = {}
    layers = {name: module for name, module in model.named_modules() if name and _over_kinds(module)}
    handles = [m.register_forward_pre_hook(partial(_look, given, n), with_kwargs=True) for n, m in layers.items()]
    try:
        forward()
        name = next(iter(given), "")
        found = given.pop(name, {})
        if found:
            given.clear()
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in (p for p in model.parameters() if p.is_floating_point()):
                    parameter.add_(_OTHER * torch.randn(parameter.shape, generator=generator).to(parameter))
            forward()
    finally:
        for handle in handles:
            handle.remove()
    kinds = {kind: shape for kind, shape in found.items() if kind in given.get(name, {})}
    if kinds:
        told = " and ".join(f"all {shape[0]} nodes of {kind}" for kind, shape in kinds.items())
        own = {kind: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for kind, shape in kinds.items()}
        yield Suspect(
            "indistinguishable-nodes", (name,), f"giving each node of {listed(list(kinds))} a vector of its own",
            f"{told} come to {name} with one and the same vector", partial(_told_apart, name, own),
        )  # fmt: skip


def _over_kinds(module: nn.Module) -> bool:
    """True for a layer that may be given a dictionary over kinds of nodes."""
    return isinstance(module, MessagePassing) or type(module).__name__ == "HeteroConv"


def _rows(args: Any, kwargs: Mapping[str, Any]) -> dict[Any, Any] | None:
    """The first dictionary of node features by kind that a call was given."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, dict) and len(value) > 1 and all(map(_features, value.values())):
            return value
    return None


def _features(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()


def _look(given: dict[str, dict[str, torch.Size]], name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    """Keep the kinds of the first call of a layer whose rows are all one, with their shape."""
    rows = _rows(args, kwargs)
    if rows is not None and name not in given:
        given[name] = {
            str(kind): x.shape for kind, x in rows.items() if len(x) > 1 and _one_row(x.detach(), x.grad_fn is not None)
        }


def _one_row(x: Tensor, computed: bool) -> bool:
    """True where all rows are one; rows of zeros that were computed come from closed units, which are a matter of their own."""
    largest = x.abs().max()
    return not (computed and largest == 0) and bool(((x - x[:1]).abs() <= _SAME * largest).all())


def _told_apart(name: str, own: Mapping[str, Tensor], model: nn.Module) -> None:
    """A hook that stays on a copy: to each row of these kinds a vector is added, the same in every step, as an embedding draws it."""

    def add(module: nn.Module, args: Any, kwargs: Any) -> Any:
        rows = _rows(args, kwargs)
        if rows is None:
            return None
        changed = {kind: x + _each(own[str(kind)], x) if str(kind) in own else x for kind, x in rows.items()}
        return (
            tuple(changed if one is rows else one for one in args),
            {key: changed if one is rows else one for key, one in kwargs.items()},
        )

    model.get_submodule(name).register_forward_pre_hook(add, with_kwargs=True)


def _each(own: Tensor, x: Tensor) -> Tensor:
    """A row for each row of ``x``; of a batch of more nodes than the first some share one."""
    return own.to(x)[torch.arange(len(x)) % len(own)]
