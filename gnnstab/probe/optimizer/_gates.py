"""Gates that let next to nothing through, opened on a copy: what they multiply is gone, and so is its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.places import SHAPES, walk_nodes
from gnnstab.probe.replaying.replica import tensors_in

SHUT = 0.1
"""Mean size of a gate from which on it is open enough: two of them in a row leave a hundredth."""

OPENED = 1.5
"""Mean of what goes into a gate that is opened: a sigmoid gives .8 there, a tanh .9."""

_GATES = ("SigmoidBackward", "TanhBackward")

_CUT = ("ReluBackward", "ThresholdBackward", "ClampMinBackward", "ClampBackward")
"""Operations that may cut a gate off at 0 before it multiplies."""

_PARTS = (*SHAPES, "SliceBackward", "SelectBackward", "SplitBackward", "UnbindBackward", "ToCopyBackward")
"""Operations that hand on a gate, or one of several."""


def shut_gates(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """One for all modules that make nothing but what goes into a sigmoid or tanh that multiplies, and stays near 0."""
    made: dict[Any, tuple[str, float]] = {}
    handles = [m.register_forward_hook(partial(_keep, made, name)) for name, m in hookable(model) if name]
    try:
        output = forward()
    finally:
        for handle in handles:
            handle.remove()
    users: dict[Any, list[Any]] = {}
    nodes = list(walk_nodes([t.grad_fn for _, t in tensors_in([output]) if t.grad_fn is not None]))
    for node in nodes:
        for above, _ in node.next_functions:
            users.setdefault(above, []).append(node)
    found: dict[str, tuple[float, float]] = {}
    for node in nodes:
        if not type(node).__name__.startswith(_GATES):
            continue
        above = node.next_functions[0][0]
        while above is not None and above not in made and type(above).__name__.startswith(SHAPES):
            above = above.next_functions[0][0]
        size = _size(node, users) if above in made and users[above] == [node] else None
        if size is not None and size < SHUT:
            name, mean = made[above]
            found[name] = min(found.get(name, (size, mean)), (size, mean))
    if found:
        # In the order in which the forward comes to them.
        names = tuple(dict.fromkeys(name for name, _ in made.values() if name in found))
        least = min(size for size, _ in found.values())
        by = {name: OPENED - mean for name, (_, mean) in found.items()}
        yield Suspect(
            "saturated-gate", names, f"opening the gates behind {listed(names)}",
            f"the gates behind {listed(names)} are all but shut, and let {100 * least:.2g} % of what they multiply through in the mean",
            partial(_open, by),
        )  # fmt: skip


def _keep(made: dict[Any, tuple[str, float]], name: str, module: nn.Module, args: Any, output: Any) -> None:
    if isinstance(output, Tensor) and output.grad_fn is not None and next(module.parameters(), None) is not None:
        made.setdefault(output.grad_fn, (name, float(output.detach().mean())))


def _size(node: Any, users: Mapping[Any, list[Any]]) -> float | None:
    """Mean size of a gate as it multiplies; None where it does something else as well, or its values are not kept."""
    try:
        values: Tensor = node._saved_result
    except (RuntimeError, AttributeError):  # Freed, or another release of torch saves something else.
        return None
    waiting, cut = list(users.get(node, ())), False
    multiplies = False
    while waiting:
        user = waiting.pop()
        kind = type(user).__name__
        if kind.startswith(_CUT) and not cut:
            cut = True
            waiting += users.get(user, ())
        elif kind.startswith(_PARTS):
            waiting += users.get(user, ())
        elif kind.startswith("MulBackward"):
            multiplies = True
        elif not kind.startswith(("RsubBackward", "SubBackward", "NegBackward")):  # One minus the gate is left open.
            return None
    size = values.detach().clamp(min=0.0) if cut else values.detach().abs()
    return float(size.mean()) if multiplies else None


def _open(by: Mapping[str, float], model: nn.Module) -> None:
    def opened(shift: float, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + shift

    for name, shift in by.items():
        model.get_submodule(name).register_forward_hook(partial(opened, shift))
