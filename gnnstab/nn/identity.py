"""An identity path around every layer of a stack whose `forward` cannot be edited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import FixError
from gnnstab.nn.output_hooks import BatchVector
from gnnstab.torch_private import graph_task


class IdentityPath:
    """Carries the node states around the layers: x ← act(conv(x)) + weight·x, from outside of the model.

    The activation stands in the user's `forward`, after the layer, so that the sum can only be formed where the
    result arrives: at the input of the next layer. `enter` is a pre-hook of every layer; it adds weight times the
    input of the layer before (residual included) when both have the same shape, and remembers its own input.
    A layer with a ``pre_norm`` then sees the norm of the sum. After the last layer nothing can be seen any more:
    there `leave` adds the identity to the layer's own output, before its activation.

    The path forgets everything when the module that owns the stack starts and ends a forward pass, so nothing leaks
    from one graph to the next. Where shapes differ nothing is added. Layers that run beside each other (one per edge
    type) share one group of the chain.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self._group = -1
        self._members: list[str] = []
        self._before: dict[str, Tensor] = {}
        self._now: dict[str, Tensor] = {}

    def forget(self) -> None:
        """Start anew: called before and after each forward pass of the module that owns the stack."""
        self._group, self._members = -1, []
        self._before, self._now = {}, {}

    def enter(self, group: int, member: str, names: tuple[str, str], x: Any) -> Any:
        """The layer's input with the identity added; ``x`` is a tensor, a (source, target) pair or a dict by type.

        ``group`` counts the layers in depth, ``member`` tells layers of one group apart, and ``names`` are the node
        types of its sources and targets (all ``""`` in a homogeneous model).
        """
        _refuse_recomputation()
        if group != self._group or member in self._members:
            self._before, self._now = self._now, {}
            self._group, self._members = group, []
        self._members = [*self._members, member]
        if isinstance(x, Mapping):
            return {kind: self._carry(kind, value) for kind, value in x.items()}
        if isinstance(x, Tensor):
            return self._carry(names[1], x)
        source, target = x
        if target is None or target is source:
            carried = self._carry(names[1], source)
            return (carried, None if target is None else carried)
        if names[0] != names[1]:
            return (self._carry(names[0], source), self._carry(names[1], target))
        return self._sampled(names[0], source, target)

    def leave(self, names: tuple[str, str], output: Any) -> Any:
        """The last layer's output with the identity added, where the shapes agree."""
        if isinstance(output, tuple):
            return (self.leave(names, output[0]), *output[1:])
        if isinstance(output, Mapping):
            return {kind: self._add(value, self._now.get(kind)) for kind, value in output.items()}
        return self._add(output, self._now.get(names[1]))

    def _carry(self, name: str, x: Tensor) -> Tensor:
        if name not in self._now:
            self._now[name] = self._add(x, self._before.get(name))
        return self._now[name]

    def _sampled(self, name: str, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbour sampling hands over (x, x[:n]); the next layer's sources are this layer's targets."""
        carried = self._add(source, self._before.get(name))
        if target.data_ptr() != source.data_ptr() or target.size(0) > source.size(0):
            raise FixError(
                "a layer was called with targets that are no leading slice of its sources: add the residual in forward"
            )
        self._now[name] = carried[: target.size(0)]
        return carried, self._now[name]

    def _add(self, x: Tensor, before: Tensor | None) -> Tensor:
        return x if before is None or before.shape != x.shape else x + self.weight * before


class EnterLayer:
    """Forward pre-hook of one layer on an `IdentityPath`; the arguments are those of `IdentityPath.enter`."""

    def __init__(self, path: IdentityPath, group: int, member: str, names: tuple[str, str]) -> None:
        self.path, self.group, self.member, self.names = path, group, member, names

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Replace the layer's node states, wherever they were passed."""
        key = next((k for k in ("x", "x_dict") if k in kwargs), None)
        if key is None and not args:
            raise FixError(f"{type(layer).__name__} was called without node features as its first argument or as x=")
        x = self.path.enter(self.group, self.member, self.names, kwargs[key] if key else args[0])
        norm = getattr(layer, "pre_norm", None)
        if norm is not None:
            x = _normalised(norm, x)
        return (args, {**kwargs, key: x}) if key else ((x, *args[1:]), kwargs)


class Forget:
    """Hook of a whole stack or model, before or after its forward pass: nothing is kept between passes."""

    def __init__(self, memory: IdentityPath | BatchVector) -> None:
        self.memory = memory

    def __call__(self, *_: Any) -> None:
        """Forget."""
        self.memory.forget()


class LeaveLayer:
    """Forward hook of the last layer on an `IdentityPath`."""

    def __init__(self, path: IdentityPath, names: tuple[str, str]) -> None:
        self.path, self.names = path, names

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add the identity to the layer's output."""
        return self.path.leave(self.names, output)


def _normalised(norm: nn.Module, x: Any) -> Any:
    if isinstance(x, Tensor):
        return norm(x)
    if isinstance(x, Mapping):
        return {
            kind: norm[kind](value) if isinstance(norm, nn.ModuleDict) else norm(value) for kind, value in x.items()
        }
    source, target = x
    same = norm(source)
    if target is None or target is source:
        return (same, None if target is None else same)
    return (same, norm(target))


def _refuse_recomputation() -> None:
    """Inside a backward pass a layer runs only because of activation checkpointing, and the path is empty by then."""
    if not torch.compiler.is_compiling() and graph_task() != -1:
        raise FixError(
            "activation checkpointing runs the layers again without their identity path: add the residual in forward"
        )
