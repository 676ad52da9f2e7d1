"""Attention whose weights are equal for all neighbours of a target, whatever the parameters are that their scores are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _masks as masks
from gnnstab.probe.places import _retaken as retaken
from gnnstab.probe.places import _weight_sums as weight_sums
from gnnstab.probe.places._passes import Row
from gnnstab.probe.places._zeros import moved
from gnnstab.records.vocabulary import PLACE_UNIFORM_WEIGHTS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

ALIKE = 1e-5
"""Difference between the weights of a target, over the largest, up to which they are equal: a hundred times float32's precision."""

APART = 0.05
"""Difference between the values of neighbours, over the largest of all, from which on there is something to choose from."""

_FEWEST = 4
"""Targets with several neighbours from which on equal weights are no chance."""


class Even(NamedTuple):
    """A softmax whose weights are equal for each target."""

    number: int
    """Among all of a forward, in the order of the walk, from the last: -1 and below."""

    place: str
    targets: int
    makers: tuple[str, ...]
    """Modules and parameters that its scores are made of."""


def found(seen: ForwardView) -> list[Even]:
    """In front of the backward: each softmax over neighbours that differ, whose weights are equal and depend on parameters."""
    nodes = list(autograd.walk(seen.outputs))
    softmaxes = _all(nodes)
    users: dict[Any, list[Any]] = {}
    even = []
    for number, (node, taken) in enumerate(softmaxes, -len(softmaxes)):
        targets = _equal(taken)
        if targets < _FEWEST:
            continue
        users = users or masks.users_of(nodes)
        if not _differ(node, taken, users):
            continue
        if makers := _makers(taken.above, seen):
            place = autograd.made_by(taken.above, seen.calls.maker) or "output"
            even.append(Even(number, place, targets, makers))
    return even


def rows(model: nn.Module, again: Callable[[], Sequence[Tensor]], even: Sequence[Even]) -> Iterator[Row]:
    """Those that stay so when random numbers are added to all parameters; ``again`` runs forward and loss of ``model``, a copy."""
    if not even:
        return
    with moved(model), torch.enable_grad():
        ends = again()
        other = [taken for _, taken in _all(list(autograd.walk(list(ends))))]
        still = [one for one in even if -one.number <= len(other) and _equal(other[one.number]) == one.targets]
    for one in still:
        yield PLACE_UNIFORM_WEIGHTS, one.place, float(one.targets), {"makers": list(one.makers)}


def _all(nodes: Sequence[Any]) -> list[tuple[Any, retaken.Taken]]:
    return [(node, taken) for node in nodes if (taken := retaken.taken(node)) is not None]


def _equal(taken: retaken.Taken) -> int:
    """How many targets, of each head, have two open neighbours and more, where the weights of each are equal; 0 where some are not.

    Of a softmax over one axis a weight of 0 is a mask, unless most rows have but one other; over edges it is the end of its format.
    """
    weights, over = taken.weights, taken.over
    if not bool(weights.isfinite().all()):
        return 0
    if isinstance(over, Tensor):
        if not bool((weights > 0).all()):
            return 0
        low, high, count = _by_group(weights, over)
    else:
        opened = weights > 0
        low, high, count = weights.masked_fill(~opened, torch.inf).amin(over), weights.amax(over), opened.sum(over)
    several = count > 1
    if not isinstance(over, Tensor) and 2 * int(several.sum()) < several.numel():
        return 0
    return int(several.sum()) if bool((high - low <= ALIKE * high)[several].all()) else 0


def _by_group(weights: Tensor, over: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest and largest weight of each group, and how many there are."""
    groups = over.view(-1, *(1,) * (weights.dim() - 1)).expand_as(weights)
    empty = weights.new_zeros(int(over.max()) + 1, *weights.shape[1:])
    low = torch.full_like(empty, torch.inf).scatter_reduce(0, groups, weights, "amin")
    high = empty.scatter_reduce(0, groups, weights, "amax")
    return low, high, torch.zeros_like(empty).scatter_add(0, groups, torch.ones_like(weights))


def _differ(node: Any, taken: retaken.Taken, users: Mapping[Any, list[Any]]) -> bool:
    """True where the values that the weights weigh differ among the neighbours of most targets."""
    for user, above in weight_sums.uses(node, users):
        kind = type(user).__name__
        operands = [one for one, _ in user.next_functions]
        if isinstance(taken.over, Tensor) and kind.startswith("MulBackward") and above in operands:
            values = autograd.saved(user, "_saved_other" if operands[0] is above else "_saved_self")
            if values is None or len(values) != len(taken.over):
                continue
            flat = values.detach().reshape(len(values), -1)
            groups = taken.over[:, None].expand_as(flat)
            empty = flat.new_zeros(int(taken.over.max()) + 1, flat.shape[1])
            high = torch.full_like(empty, -torch.inf).scatter_reduce(0, groups, flat, "amax")
            low = torch.full_like(empty, torch.inf).scatter_reduce(0, groups, flat, "amin")
            several = torch.bincount(taken.over, minlength=len(empty)) > 1
            apart = ((high - low)[several] > APART * flat.abs().max()).any(1)
            return bool(apart.float().mean() > 0.5)
        if (
            not isinstance(taken.over, Tensor)
            and kind.startswith(("BmmBackward", "MmBackward"))
            and operands[0] is above
        ):
            values = autograd.saved(user, "_saved_mat2")
            if values is None or taken.over != taken.weights.dim() - 1:
                continue
            values = values.detach()
            return bool((values.amax(-2) - values.amin(-2) > APART * values.abs().max()).any())
    return False


def _makers(above: Any, seen: ForwardView) -> tuple[str, ...]:
    """The nearest modules on the way to the scores that hold parameters, and parameters; empty for scores that none goes into."""
    holding = {
        name for name, module in seen.model.named_modules() if name and next(module.parameters(), None) is not None
    }
    named = {id(p): name for name, p in seen.model.named_parameters()}
    waiting, known, makers = [above], {above}, dict[str, None]()
    while waiting and len(known) < autograd.MOST_NODES:
        node = waiting.pop()
        name = seen.calls.maker.get(node) or named.get(id(getattr(node, "variable", None)), "")
        if name and (name in holding or name in named.values()):
            makers[name] = None
            continue
        for other, _ in node.next_functions:
            if other is not None and other not in known:
                known.add(other)
                waiting.append(other)
    return tuple(sorted(makers))
