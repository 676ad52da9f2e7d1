"""Deep stacks that one forward shows: layers in a row without an identity path, rounds that smooth, normalisations behind residual sums; each undone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.attaching.identity_path import leads_to, ways
from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.probe.statistics.smoothness import relative_difference

LAYERS = 4
"""Layers in a row from which on a stack counts as deep: in shallower ones no identity path made a measurable difference."""

NORMS = 6
"""Normalisations behind residual sums from which on a stack counts as post-norm: three blocks of two."""

_MIXES = (
    "mm",
    "Mm",
    "Linear",
    "Scatter",
    "Index",
    "Gather",
    "Softmax",
    "Convolution",
    "Attention",
    "Segment",
    "Sparse",
)
"""Operations that no identity passes: products with weights, and sums over neighbours."""

_BESIDE = (
    *("Dropout", "View", "Reshape", "Unsafe", "Transpose", "Permute", "Squeeze", "Clone", "ToCopy", "Slice", "Select"),
    *("Relu", "Elu", "Gelu", "Silu", "Tanh"),
)
"""Operations that hand on what they were given, entry by entry."""

_OVER_ROWS = ("Scatter", "Index", "Gather", "Softmax", "Segment", "Sparse", "Attention")
"""Those of them that give a row something of others."""

SMOOTH = 0.05
"""‖X − mean‖/‖X‖ behind rounds from which on they have smoothed everything, where it is a tenth of that before them or less, as for GS704."""

GONE = 0.1

KEPT = 0.2
"""Share of the first state that is mixed into each round of a trial, as the teleport of a diffusion does."""

_NODES = 4000
"""Autograd nodes that are looked at between two tensors."""


class _Call(NamedTuple):
    name: str
    module: nn.Module
    given: tuple[tuple[int | str, Tensor], ...]
    """What the module was given, with the place or the name of each argument."""

    leaving: Tensor
    node: Any
    """What made ``leaving``, taken when the module returned."""

    chosen: int = 0
    """Which of what was given goes on from call to call."""

    @property
    def entering(self) -> Tensor:
        return self.given[self.chosen][1]

    @property
    def key(self) -> int | str:
        """Place or name of the argument that goes on from call to call."""
        return self.given[self.chosen][0]


def stacks(model: nn.Module, forward: Callable[[], Any]) -> list[Suspect]:
    """The stacks that ``forward``, which calls ``model`` with gradients, runs through."""
    calls: list[_Call] = []
    handles = [
        m.register_forward_hook(partial(_keep, calls, name), with_kwargs=True) for name, m in hookable(model) if name
    ]
    try:
        output = forward()
    finally:
        for handle in handles:
            handle.remove()
    ends = [t for _, t in tensors_in([output]) if t.grad_fn is not None]
    return [*_without_identity(model, calls, ends), *_behind_sums(calls, _users(ends))]


def _keep(calls: list[_Call], name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    own = [*enumerate(args), *kwargs.items()]
    given = tuple((key, t) for key, one in own for _, t in tensors_in([one]) if t.is_floating_point())
    leaving = next((t for _, t in tensors_in([output]) if t.is_floating_point()), None)
    if given and leaving is not None and leaving.grad_fn is not None:
        calls.append(_Call(name, module, given, leaving, leaving.grad_fn))


def _normalises(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _containers(model: nn.Module) -> Iterator[list[str]]:
    """Names of the members of every list of at least `LAYERS` modules of one class that are no normalisations."""
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < LAYERS:
            continue
        kinds = {type(child) for child in module}
        if len(kinds) == 1 and not any(_normalises(child) for child in module):
            yield [f"{name}.{key}" if name else key for key, _ in module.named_children()]


def _iterated(calls: Sequence[_Call]) -> Iterator[list[str]]:
    """The name of every module with weights, or that passes messages, that is called at least `LAYERS` times, and is no part of another one."""
    often = [name for name, n in Counter(call.name for call in calls).items() if n >= LAYERS]
    own = {call.name: call.module for call in calls}
    for name in often:
        inside = any(name.startswith(f"{other}.") for other in often)
        computes = isinstance(own[name], MessagePassing) or next(own[name].parameters(), None) is not None
        if not inside and not _normalises(own[name]) and computes:
            yield [name]


def _without_identity(model: nn.Module, calls: Sequence[_Call], ends: Sequence[Tensor]) -> Iterator[Suspect]:
    found: set[tuple[str, ...]] = set()
    for names in (*_containers(model), *_iterated(calls)):
        row = _in_a_row([call for call in calls if call.name in names])
        told = tuple(dict.fromkeys(call.name for call in row))
        if len(row) < LAYERS or told in found:
            continue
        found.add(told)
        around = ways([*((c.name, c.entering, c.node) for c in row), ("", ends[0] if ends else None, None)]).around
        if any(around.get(call.name) for call in row) or any(_carries(call) for call in row):
            continue
        if len(told) == 1 and _smooths(row):
            before, after = (100 * difference for difference in _differences(row))
            yield Suspect(
                "oversmoothing", told, f"mixing a fifth of the first state into each round of {listed(told)}",
                f"{len(row)} rounds of {listed(told)} bring the differences between the rows that it is given from {before:.3g} to {after:.2g} % of their size",
                partial(_mix_first_in, told[0], len(row), row[-1].key),
            )  # fmt: skip
            continue
        yield Suspect(
            "no-residual", told, f"laying an identity path around {listed(told)}",
            f"no identity path leads around {listed(told)}", partial(_add_identities, told, len(row), row[-1].key),
        )  # fmt: skip


def _in_a_row(calls: Sequence[_Call]) -> list[_Call]:
    """The first calls of modules of which each is given what was made from what the one before returned, in the same shape."""
    row: list[_Call] = []
    for call in calls:
        if row:
            onward = [
                place
                for place, (_, t) in enumerate(call.given)
                if t.shape == row[-1].entering.shape and _reaches(t.grad_fn, row[-1].node)
            ]
            if not onward:
                return row
            call = call._replace(chosen=onward[0])
        row.append(call)
    return row


def _differences(row: Sequence[_Call]) -> tuple[float, float]:
    """‖X − mean‖/‖X‖ of the rows that the first call is given and of those that the last one returns."""
    before, after = (float(relative_difference(t.detach().flatten(1))) for t in (row[0].entering, row[-1].leaving))
    return before, after


def _smooths(row: Sequence[_Call]) -> bool:
    """True for calls that mix rows with each other until next to nothing tells them apart."""
    alike = row[0].entering.dim() > 1 and row[0].entering.shape == row[-1].leaving.shape
    if not alike or not _over_rows(row[-1]):
        return False
    before, after = _differences(row)
    return after < SMOOTH and after < GONE * before


def _over_rows(call: _Call) -> bool:
    """True where an operation inside the call gives a row something of others."""
    ends = {t.grad_fn for _, t in call.given if t.grad_fn is not None}
    waiting, seen = [call.node], {call.node, *ends}
    while waiting and len(seen) < _NODES:
        one = waiting.pop()
        if any(kind in type(one).__name__ for kind in _OVER_ROWS):
            return True
        new = [other for other in leads_to(one) if other not in seen]
        seen.update(new)
        waiting += new
    return False


def _carries(call: _Call) -> bool:
    """True where a way leads through a module on which nothing is multiplied with weights."""
    before = call.entering.grad_fn
    return before is not None and _reaches(call.node, before, without=_MIXES)


def _reaches(node: Any, above: Any, without: Sequence[str] = ()) -> bool:
    waiting, seen = [node], {node}
    while waiting and len(seen) < _NODES:
        one = waiting.pop()
        if one is above:
            return True
        if one is None or any(kind in type(one).__name__ for kind in without):
            continue
        for other in leads_to(one):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return False


def _mix_first_in(name: str, calls: int, key: int | str, model: nn.Module) -> None:
    """Each of the ``calls`` of a module returns a fifth of what the first of them was given beside what it computes."""
    first: list[Tensor] = []
    count: list[None] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        if len(count) % calls == 0:
            first[:] = [_argument(args, kwargs, key)]
        count.append(None)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return (1 - KEPT) * output + KEPT * first[0] if isinstance(output, Tensor) else None

    def forget(module: nn.Module, args: Any) -> None:
        count.clear()

    model.register_forward_pre_hook(forget)
    model.get_submodule(name).register_forward_pre_hook(enter, with_kwargs=True)
    model.get_submodule(name).register_forward_hook(leave)


def _argument(args: Any, kwargs: Any, key: int | str) -> Any:
    return kwargs[key] if isinstance(key, str) else args[key]


def _add_identities(names: Sequence[str], calls: int, key: int | str, model: nn.Module) -> None:
    """Each of the ``calls`` in a row is given what the one before was given plus what was made from that, over √calls; the last hands its own on.

    Behind averages that leave the mean and nothing else, a sum with weights of 1 would double the mean at each call.
    """
    before: list[Tensor] = []
    weight = calls**-0.5

    def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
        x = _argument(args, kwargs, key)
        if before and before[-1].shape == x.shape:
            x = before[-1] + weight * x
        before.append(x)
        if isinstance(key, str):
            return args, {**kwargs, key: x}
        return (*args[:key], x, *args[key + 1 :]), kwargs

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        # Nothing comes behind it that could be given both.
        alike = isinstance(output, Tensor) and output.shape == before[-1].shape
        return before[-1] + weight * output if len(before) == calls and alike else None

    def forget(module: nn.Module, args: Any) -> None:
        before.clear()

    model.register_forward_pre_hook(forget)
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(enter, with_kwargs=True)
        model.get_submodule(name).register_forward_hook(leave)


def _users(ends: Sequence[Tensor]) -> Counter[Any]:
    """How many operations use the result of each one."""
    users, waiting = Counter[Any](), [t.grad_fn for t in ends]
    while waiting:
        for above, _ in waiting.pop().next_functions:  # type: ignore[union-attr]
            if above is not None:
                users[above] += 1
                if users[above] == 1:
                    waiting.append(above)
    return users


def _behind_sums(calls: Sequence[_Call], users: Counter[Any]) -> Iterator[Suspect]:
    norms = [call for call in calls if _per_row(call.module)] if len(calls) >= NORMS else []
    pairs = [(call.name, branch) for call in norms if (branch := _branch(call, calls, users))]
    if len(pairs) >= NORMS:
        names = tuple(norm for norm, _ in pairs)
        yield Suspect(
            "normalization-misuse", names, f"normalising in front of each layer instead of with {listed(names)}",
            f"the normalisations {listed(names)} stand after the residual sum (post-norm), and nothing leads around them",
            partial(_normalise_in_front, pairs),
        )  # fmt: skip


def _per_row(module: nn.Module) -> bool:
    """True for a normalisation that needs nothing beside its rows."""
    return isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__


def _branch(norm: _Call, calls: Sequence[_Call], users: Counter[Any]) -> str:
    """Name of the module whose result is added to what it was given right in front of the normalisation; empty where there is none.

    A sum that goes on beside the normalisation as well is the residual path of a pre-norm block.
    """
    node = list(_handed_on(norm.entering.grad_fn))[-1]
    if node is None or not type(node).__name__.startswith("AddBackward") or users[node] > 1:
        return ""
    operands = [list(_handed_on(above)) for above, _ in node.next_functions if above is not None]
    if len(operands) != 2:
        return ""
    for own, other in (operands, operands[::-1]):
        made = [
            c for c in calls if c.node in own and not _normalises(c.module) and not norm.name.startswith(f"{c.name}.")
        ]
        # The outermost module that returned it; what it was given lies on the other side of the sum.
        if made and any(_reaches(own[-1], one) for one in other):
            return made[-1].name
    return ""


def _handed_on(node: Any) -> Iterator[Any]:
    """The node, and those behind it up to the first that computes."""
    yield node
    while node is not None and any(kind in type(node).__name__ for kind in _BESIDE):
        node = next((above for above, _ in node.next_functions if above is not None), None)
        yield node


def _normalise_in_front(pairs: Iterable[tuple[str, str]], model: nn.Module) -> None:
    """x ← x + f(norm(x)) instead of norm(x + f(x)), by the same normalisation."""

    def through(module: nn.Module, args: Any, output: Any) -> Any:
        return args[0]

    def enter(own: nn.Module, module: nn.Module, args: Any) -> Any:
        x = args[0]
        normed = own.forward(x)
        return tuple(normed if one is x else one for one in args)

    for norm, branch in pairs:
        own = model.get_submodule(norm)
        own.register_forward_hook(through)
        model.get_submodule(branch).register_forward_pre_hook(partial(enter, own))
