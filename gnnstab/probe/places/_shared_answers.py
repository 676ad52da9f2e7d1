"""Nodes that all start out the same: how much of what is asked for lies among rows that get one answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _numbers as numbers
from gnnstab.probe.places._calls import Calls, watched
from gnnstab.probe.places._states import reached_by_edges
from gnnstab.probe.places._zeros import moved
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.stored import is_dense

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_DIGITS = 1e4
"""Parts of the output's RMS that two answers are told apart by."""

_SAME = 1e-6
"""Difference of two rows, relative to the largest entry, up to which they are one."""

_ROUNDED = 0.5
"""Share of the answers' spread that the last digits of the parameters move, from which on rounding alone spreads them."""


def rows(
    model: nn.Module, again: Callable[[], Sequence[Tensor]], seen: ForwardView
) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """The spread of the targets among rows of the output that get the same answer, over all of it; where nodes start out the same.

    They do where every kind of nodes has the same features in each row, or where the first layer is given such rows, and still is when
    ``again`` runs the forward of ``model``, a copy, with random numbers added to all its parameters: a table of zeros is then no table of zeros.
    """
    found = [(t, y) for t in seen.outputs for n, y in seen.batch.items() if is_target(n) and _answers(t, y)]
    features = _alike_features(seen)
    entered = None if features else _alike_entries(model, again, seen)
    place = features or (entered and entered[0])
    if entered is not None and any(t.dim() and len(t) == entered[1] for t in seen.outputs):
        # What comes beside the layers may tell the rows apart; the layers tell nothing of them.
        detail = {
            "answers": 1,
            "rows": entered[1],
            "inside": True,
            "layers": True,
            "apart": _apart_before(seen, *entered),
        }
        yield "place.shared_answers", entered[0], 1.0, detail
        return
    if place is None or not found:
        return
    answers, targets = found[0]
    count = targets.shape[: _leading(answers, targets)].numel()
    flat = answers.detach().reshape(count, -1).double()
    size = float(flat.square().mean().sqrt())
    if not size > 0 or not math.isfinite(size):
        return
    distinct, group = torch.unique((flat / size * _DIGITS).round(), dim=0, return_inverse=True)
    rounded = len(distinct) > 1 and features is not None and _spread_by_rounding(model, again, flat, answers.shape)
    if rounded:
        distinct, group = distinct[:1], torch.zeros_like(group)
    wanted = _spread_out(targets.detach().reshape(count, -1))
    total = float((wanted - wanted.mean(0)).square().sum())
    if total > 0:
        within = float((wanted - numbers.graph_means(wanted, group)).square().sum())
        yield (
            "place.shared_answers",
            place,
            within / total,
            {
                "answers": len(distinct),
                "rows": count,
                "inside": features is None,
                "rounded": rounded,
            },
        )


def _spread_by_rounding(
    model: nn.Module, again: Callable[[], Sequence[Tensor]], flat: Tensor, shape: torch.Size
) -> bool:
    """True where answers, float64 (rows, columns), differ by no more than the last digits of the parameters move their differences.

    As behind a normalisation of a column without variance, which divides what rounding has left by √eps.
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.extend(t.detach() for _, t in tensors_in([output]) if is_dense(t) and t.shape == shape)

    handle = model.register_forward_hook(keep)
    try:
        with moved(model, last_digit=True):
            again()
    finally:
        handle.remove()
    if not kept:
        return False
    other = kept[0].reshape(flat.shape).double()
    own, moving = (float((t - t.mean(0)).square().mean().sqrt()) for t in (flat, other - flat))
    return moving > _ROUNDED * own


def _leading(answers: Tensor, targets: Tensor) -> int:
    """Dimensions that number the rows: two for padded sets, else one."""
    return 2 if answers.dim() == 3 and targets.dim() > 1 and targets.shape[:2] == answers.shape[:2] else 1


def _answers(answers: Tensor, targets: Tensor) -> bool:
    return bool(answers.dim() and targets.dim() and len(answers) == len(targets) > 2)


def _alike_features(seen: ForwardView) -> str | None:
    features = {
        n: t for n, t in seen.batch.items() if n.rsplit(".", 1)[-1] == "x" and t.is_floating_point() and t.dim() == 2
    }
    return next(iter(features), None) if all(map(_alike, features.values())) else None


def _alike_entries(
    model: nn.Module, again: Callable[[], Sequence[Tensor]], seen: ForwardView
) -> tuple[str, int] | None:
    """Name of the layer that is the first to pass messages, where it is given the same row for every node whatever the weights are.

    Also how many rows the last one gives that are all the same as well, whatever the weights are, but for nodes that no edge leads to and
    those that hear of them; 0 where they differ.
    """
    calls = seen.calls
    first = _first(calls)
    if first is None or not _enter_alike(calls, first):
        return None
    with moved(model), watched(model) as other:
        again()
    return (first, min(_leave_alike(calls, seen), _leave_alike(other, seen))) if _enter_alike(other, first) else None


def _leave_alike(calls: Calls, seen: ForwardView) -> int:
    """Rows of what the last layer that passes messages returns, where they are all one; else 0."""
    last = [call.leaving for call in calls.all if isinstance(call.module, MessagePassing)][-1:]
    given = [t for leaving in last for t in leaving if t.dim() == 2]
    if len(given) != 1:
        return 0
    heard = reached_by_edges(seen, len(given[0]))
    return len(given[0]) if _alike(given[0] if heard is None else given[0][heard]) else 0


def _apart_before(seen: ForwardView, name: str, count: int) -> bool:
    """True where the nodes still differed in front of the layer: something on the way, as units that are closed, has made them alike."""
    before = itertools.takewhile(lambda call: not call.name.startswith(name), seen.calls.all)
    return any(t.dim() == 2 and len(t) == count and not _alike(t) for call in before for t in call.leaving)


def _first(calls: Calls) -> str | None:
    """The first layer that passes messages, or what holds one for each relation of it."""
    layer = next((call.name for call in calls.all if isinstance(call.module, MessagePassing)), None)
    around = (c.name for c in calls.all if type(c.module).__name__ == "HeteroConv" and str(layer).startswith(c.name))
    return next(around, layer)


def _enter_alike(calls: Calls, name: str) -> bool:
    entering = next((call.entering for call in calls.all if call.name == name), [])
    given = [t for t in entering if t.dim() == 2]
    return bool(given) and all(map(_alike, given))


def _alike(rows: Tensor) -> bool:
    """True for at least two rows that are all one, up to rounding."""
    return len(rows) > 1 and bool(((rows - rows[:1]).abs() <= _SAME * rows.abs().max()).all())


def _spread_out(targets: Tensor) -> Tensor:
    """Classes as one-hot rows, numbers as they are; (rows, columns)."""
    if targets.is_floating_point() or targets.shape[1] > 1:
        return torch.nan_to_num(targets.double())
    return torch.nn.functional.one_hot(torch.unique(targets.flatten(), return_inverse=True)[1]).double()
