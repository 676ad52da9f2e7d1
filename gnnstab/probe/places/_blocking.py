"""Where a backward stops: operations that are given a gradient, hand none on, and leave parameters without one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._centrings import Centrings, peak

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

PASSES = 1e-8
"""Largest gradient that an operation hands on over the largest that it is given, from which on it passes one."""

ROUNDING = 1e-4
"""The same for an operation over a single entry, which is known to hand nothing on but rounding."""

SHUT = 1e-6
"""The same for a sigmoid or tanh of parameters alone, which no batch opens: a gradient of 0.01 falls to Adam's usual eps of 1e-8 behind it."""

FILLED = 10.0
"""Size of all entries of a bias, of one sign, from which on the sigmoid or tanh behind it was shut, or open, by who wrote it: no training takes all of them there."""

NEARLY = 1e-4
"""Largest gradient that such a gate hands on over the largest that it is given, where its bias is not outweighed by what it is added to."""

SILENT = 1e-12
"""Largest gradient of a parameter over that of all parameters, below which it counts as without one: rounding leaves more."""

KINDS = {
    "ReluBackward": "relu",
    "ThresholdBackward": "relu",
    "ClampMinBackward": "clamp",
    "ClampMaxBackward": "clamp",
    "ClampBackward": "clamp",
    "HardtanhBackward": "clamp",
    "HardsigmoidBackward": "hard_sigmoid",
    "MinimumBackward": "clamp",
    "MaximumBackward": "clamp",
    "RoundBackward": "round",
    "FloorBackward": "floor",
    "CeilBackward": "ceil",
    "TruncBackward": "trunc",
    "SignBackward": "sign",
    "HeavisideBackward": "heaviside",
    "NormalBackward": "normal",
    "BernoulliBackward": "bernoulli",
    "PoissonBackward": "poisson",
    "SigmoidBackward": "sigmoid",
    "TanhBackward": "tanh",
    "SoftmaxBackward": "softmax",
    "NativeLayerNormBackward": "layer_norm",
}
"""Beginning of a node's class name → the operation; a clamp to [0, 1] is a hard sigmoid. Not multiplication: a factor of 0 that learns is how a branch may begin."""


GATES = ("sigmoid", "tanh")
"""Operations that a gate of parameters alone may end in."""

OVER_ONE = ("softmax", "layer_norm")
"""Operations that hand nothing on over a single entry, and are looked at only there: a softmax that is sharp may be right."""


ELEMENTWISE = tuple(
    f"{name}Backward"
    for name in (
        *(
            "T",
            "Transpose",
            "Permute",
            "View",
            "UnsafeView",
            "Expand",
            "Unsqueeze",
            "Squeeze",
            "Select",
            "Slice",
            "Index",
        ),
        *("Mul", "Div", "Add", "Sub", "Neg", "Repeat", "Clone", "ToCopy"),
    )
)
"""Beginnings of the class names of nodes that keep an entry of a parameter what it is, or do sums with it."""

CENTRED = "centred"
"""What takes away the mean of its rows, where nothing else is read behind it."""

MASKS = ("relu", "clamp", "hard_sigmoid")
"""Operations that hand on the gradient of an entry as it is, or nothing."""


class Blocks:
    """Listens to one backward; `rows` tells afterwards where it stopped.

    To be closed: a node owns its hooks, and a hook that knows the node would keep the whole graph for good, since Python's
    collector does not see through the nodes.
    """

    def __init__(self, seen: ForwardView) -> None:
        self._seen = seen
        self._passed: dict[Any, tuple[float, float]] = {}
        self._kinds: dict[Any, str] = {}
        self._centrings = Centrings(seen.outputs)
        self._handles: list[Any] = self._centrings.handles
        for node in autograd.walk(seen.outputs):
            kind = next((k for beginning, k in KINDS.items() if type(node).__name__.startswith(beginning)), None)
            if kind == "clamp" and autograd.limits(node) == (0, 1):
                kind = "hard_sigmoid"
            if kind is not None and (kind not in OVER_ONE or _over_one(node)):
                self._kinds[node] = kind
                self._handles.append(node.register_hook(self._listener(node)))

    def close(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _listener(self, node: Any) -> Any:
        def listen(leaving: tuple[Tensor | None, ...], entering: tuple[Tensor | None, ...]) -> None:
            given, handed = self._passed.get(node, (0.0, 0.0))
            self._passed[node] = (max(given, peak(entering)), max(handed, peak(leaving[:1])))

        return listen

    def rows(self) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        """One row for each operation behind which parameters have no gradient that counts: how many."""
        named = self._seen.model.named_parameters()
        names = {id(p): name for name, p in named if p.requires_grad and not is_lazy(p) and p.numel()}
        sizes = {key: peak((p.grad,)) for p in self._seen.model.parameters() if (key := id(p)) in names}
        limit = SILENT * max(sizes.values(), default=0.0)
        centred = {n for n, (given, left) in self._centrings.passed.items() if given > 0 and left <= ROUNDING * given}
        closed = dict.fromkeys(node for node, passed in self._passed.items() if self._stops(node, *passed))
        closed |= dict.fromkeys(centred)
        # What a way around leads to has a gradient; what it does not is in front of a closed operation alone.
        around = _parameters_before([t.grad_fn for t in self._seen.outputs if t.grad_fn is not None], closed)
        empty, factors = self._seen.calls.empty_sums(), self._factors() if closed else {}
        # What a way around leads to through a map that begins at zero gets its gradient as soon as the map has moved.
        waiting = _parameters_before(self._beginning(sizes, limit), closed) & around if closed else set()
        for node in closed:
            above = [above for above, _ in node.next_functions if above is not None]
            # What it multiplies is given nothing either where it is 0.
            above += [other for other in factors.get(node, ()) if other is not node and node not in centred]
            before = _parameters_before(above, ())
            silent = [
                name
                for key, name in names.items()
                if key in before - waiting and (key not in around or sizes[key] <= limit)
            ]
            place = autograd.made_by(above[0], self._seen.calls.maker) or "output"
            if self._filled_shut(node):
                # Little of a gradient passes, and what the gate multiplies gets as little.
                silent = [name for name in names.values() if name.startswith(f"{place}.")]
            if silent and place not in empty:
                kind, module = (CENTRED if node in centred else self._kinds[node]), False
                if node in centred:
                    place, module = self._centrings.place(node, self._seen.calls)
                elif kind == "layer_norm":  # It is a module itself.
                    place = autograd.made_by(node, self._seen.calls.maker) or place
                detail = {
                    "operation": kind,
                    "parameters": silent[:50],
                    "all": len(silent) == len(names),
                    "bias": self._nearest(f"{place}.bias")
                    if self._filled_shut(node)
                    else self._filled_bias(f"{place}.bias"),
                    "module": module,
                }
                if kind in GATES and (gate := self._own_gate(node)):
                    place = gate
                    silent = [gate]
                    detail |= {"parameters": silent, "bias": self._filled_bias(gate), "gate": True}
                yield "place.gradient_stops", place, float(len(silent)), detail

    def _factors(self) -> dict[Any, list[Any]]:
        """Every node that is multiplied, with the factors of its products."""
        found: dict[Any, list[Any]] = {}
        for user in autograd.walk(self._seen.outputs):
            if type(user).__name__.startswith("MulBackward"):
                factors = [factor for factor, _ in user.next_functions if factor is not None]
                for factor in dict.fromkeys(factors):
                    found.setdefault(factor, []).extend(factors)
        return found

    def _beginning(self, sizes: dict[int, float], limit: float) -> list[Any]:
        """What is multiplied by a weight that is zero throughout and gets a gradient."""
        found = []
        for node in autograd.walk(self._seen.outputs):
            if type(node).__name__.startswith(("AddmmBackward", "MmBackward", "MulBackward")):
                factors = [factor for factor, _ in node.next_functions if factor is not None]
                leaves = [_leaf(factor) for factor in factors]
                zero = [p is not None and sizes.get(id(p), 0.0) > limit and not p.detach().any() for p in leaves]
                if any(zero[-2:]):  # The first of three is added.
                    found += [factor for factor, leaf in zip(factors, leaves, strict=True) if leaf is None]
        return found

    def _stops(self, node: Any, given: float, handed: float) -> bool:
        kind = self._kinds[node]
        # A mask passes whole entries: beside a huge gradient at a closed one (a vector of zeros that is normalised) an open one is small.
        share = 0.0 if kind in MASKS else ROUNDING if kind in OVER_ONE else PASSES
        if kind in GATES and PASSES * given < handed <= SHUT * given and self._own_gate(node):
            return True
        if PASSES * given < handed <= NEARLY * given and self._filled_shut(node):
            return True
        return given > 0 and handed <= share * given

    def _filled_shut(self, node: Any) -> bool:
        """True for a gate of a module whose bias was filled with a number that shuts it, or opens it for good."""
        if self._kinds.get(node) not in GATES:
            return False
        bias = self._entries(f"{autograd.made_by(node.next_functions[0][0], self._seen.calls.maker)}.bias")
        return len(bias) > 1 and (min(bias) > FILLED or max(bias) < -FILLED)

    def _own_gate(self, node: Any) -> str | None:
        """Name of the parameter that a gate is taken of, whatever the batch holds; None where it is taken of anything else, too."""
        leaves = _made_of(node.next_functions[0][0])
        names = [name for name, p in self._seen.model.named_parameters() if any(p is leaf for leaf in leaves or ())]
        return names[0] if names and leaves and len(names) == len(leaves) else None

    def _filled_bias(self, name: str) -> float | None:
        """The one number that a parameter was filled with; None where its entries differ, as after training."""
        entries = self._entries(name)
        return entries[0] if len(entries) > 1 and len(set(entries)) == 1 else None

    def _nearest(self, name: str) -> float:
        """The entry that is nearest to 0."""
        return min(self._entries(name), key=abs)

    def _entries(self, name: str) -> list[float]:
        bias = dict(self._seen.model.named_parameters()).get(name)
        return [] if bias is None else bias.detach().flatten().tolist()


def _leaf(node: Any) -> Tensor | None:
    """The parameter that a node is, or turns over."""
    while not hasattr(node, "variable") and type(node).__name__.startswith(("TBackward", "TransposeBackward")):
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


def _made_of(node: Any) -> list[Tensor] | None:
    """The leaves of a node that nothing else goes into but numbers and what has no gradient; None where something does."""
    if hasattr(node, "variable"):
        return [node.variable]
    if not type(node).__name__.startswith(ELEMENTWISE):
        return None
    parts = [_made_of(above) for above, _ in node.next_functions if above is not None]
    return None if None in parts else list({id(leaf): leaf for part in parts for leaf in part or ()}.values())


def _parameters_before(nodes: list[Any], closed: Collection[Any]) -> set[int]:
    """Ids of the leaves that lead to these nodes, by ways that no closed node lies on."""
    found = autograd.walk_nodes([node for node in nodes if node not in closed], closed)
    return {id(node.variable) for node in found if hasattr(node, "variable")}


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
