"""Where a backward stops: operations that are given a gradient, hand none on, and leave parameters without one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch_geometric.nn import MessagePassing

from gnnstab.probe.places import _operations as operations
from gnnstab.probe.places._states import in_degree

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

PASSES = 1e-8
"""Largest gradient that an operation hands on over the largest that it is given, from which on it passes one."""

ROUNDING = 1e-4
"""The same for an operation over a single entry, which is known to hand nothing on but rounding."""

SILENT = 1e-7
"""The same for the gradients of a parameter over those of all parameters: rounding leaves as much in single precision."""

KINDS = {
    "ReluBackward": "relu",
    "ThresholdBackward": "relu",
    "ClampMinBackward": "clamp",
    "ClampMaxBackward": "clamp",
    "ClampBackward": "clamp",
    "HardtanhBackward": "clamp",
    "MinimumBackward": "clamp",
    "MaximumBackward": "clamp",
    "RoundBackward": "round",
    "FloorBackward": "floor",
    "CeilBackward": "ceil",
    "TruncBackward": "trunc",
    "SignBackward": "sign",
    "HeavisideBackward": "heaviside",
    "SigmoidBackward": "sigmoid",
    "TanhBackward": "tanh",
    "SoftmaxBackward": "softmax",
    "NativeLayerNormBackward": "layer_norm",
}
"""Beginning of a node's class name → the operation. Not multiplication: a factor of 0 that learns is how a branch may begin."""


OVER_ONE = ("softmax", "layer_norm")
"""Operations that hand nothing on over a single entry, and are looked at only there: a softmax that is sharp may be right."""


class Blocks:
    """Listens to one backward; `rows` tells afterwards where it stopped."""

    def __init__(self, seen: ForwardView) -> None:
        self._seen = seen
        self._passed: dict[Any, tuple[float, float]] = {}
        self._kinds: dict[Any, str] = {}
        for node in operations.walk(seen.outputs):
            kind = next((k for beginning, k in KINDS.items() if type(node).__name__.startswith(beginning)), None)
            if kind is not None and (kind not in OVER_ONE or _over_one(node)):
                self._kinds[node] = kind
                node.register_hook(self._listener(node))

        self._lone: list[tuple[str, Tensor, Tensor]] = []
        for call in seen.calls.all:
            tensor = call.leaving[0] if isinstance(call.module, MessagePassing) and call.leaving else None
            degree = None if tensor is None or tensor.dim() < 2 else in_degree(seen, len(tensor))
            if tensor is not None and degree is not None and tensor.grad_fn is not None:
                tensor.retain_grad()
                self._lone.append((call.name, tensor, degree == 0))

    def _listener(self, node: Any) -> Any:
        def listen(leaving: tuple[Tensor | None, ...], entering: tuple[Tensor | None, ...]) -> None:
            given, handed = self._passed.get(node, (0.0, 0.0))
            self._passed[node] = (max(given, _peak(entering)), max(handed, _peak(leaving[:1])))

        return listen

    def rows(self) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        """One row for each operation behind which parameters have no gradient that counts: how many."""
        yield from self._unreached()
        names = {id(p): name for name, p in self._seen.model.named_parameters() if p.requires_grad and p.numel()}
        sizes = {key: _peak((p.grad,)) for p in self._seen.model.parameters() if (key := id(p)) in names}
        largest = max(sizes.values(), default=0.0)
        for node, (given, handed) in self._passed.items():
            over_one = self._kinds[node] in OVER_ONE
            if not given > 0 or handed > (ROUNDING if over_one else PASSES) * given:
                continue
            limit = (ROUNDING if over_one else SILENT) * largest
            above = [above for above, _ in node.next_functions if above is not None]
            before = {id(n.variable) for n in operations.walk_nodes(above) if hasattr(n, "variable")}
            silent = [name for key, name in names.items() if key in before and sizes[key] <= limit]
            if silent:
                place = operations.made_by(above[0], self._seen.calls.maker) or "output"
                if self._kinds[node] == "layer_norm":  # It is a module itself.
                    place = operations.made_by(node, self._seen.calls.maker) or place
                detail = {
                    "operation": self._kinds[node],
                    "parameters": silent[:50],
                    "all": len(silent) == len(names),
                    "bias": self._filled_bias(place),
                }
                yield "place.gradient_stops", place, float(len(silent)), detail

    def _unreached(self) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        """For every layer that passes messages: the share of its nodes that no edge leads to and that the loss depends on."""
        for call, tensor, lone in self._lone:
            if tensor.grad is not None:
                read = tensor.grad.flatten(1).any(1)
                yield "place.isolated_read", call, float((read & lone).double().mean()), {}

    def _filled_bias(self, place: str) -> float | None:
        """The one number that the bias of a module was filled with; None where its entries differ, as after training."""
        bias = dict(self._seen.model.named_parameters()).get(f"{place}.bias")
        filled = bias is not None and bias.numel() > 1 and bool((bias == bias.reshape(-1)[0]).all())
        return float(bias.reshape(-1)[0]) if bias is not None and filled else None


def _over_one(node: Any) -> bool:
    """True for a softmax or LayerNorm over one entry, whose result is 1, or the bias, whatever it is given."""
    try:
        if hasattr(node, "_saved_normalized_shape"):
            return bool(math.prod(node._saved_normalized_shape) == 1)
        shape, dim = tuple(node._saved_result.shape), int(node._saved_dim)
    except (RuntimeError, AttributeError):
        return False
    # A negative dim is saved as an unsigned number.
    return bool(shape) and bool(shape[dim if dim < 1 << 63 else dim - (1 << 64)] == 1)


def _peak(gradients: tuple[Tensor | None, ...]) -> float:
    return max((float(g.detach().abs().max()) for g in gradients if g is not None and g.numel()), default=0.0)
