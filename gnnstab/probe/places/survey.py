"""`survey`: one forward and backward of a copy of the model, and what every place on the way shows."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_geometric.nn import MessagePassing

from gnnstab.errors import UsageError, let_through, ours
from gnnstab.left_out import left_out
from gnnstab.probe.attaching.norms import batch_vectors, graphs_in
from gnnstab.probe.batches.named_tensors import named_tensors, written
from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.places import _all_pairs as all_pairs
from gnnstab.probe.places import _alone as alone
from gnnstab.probe.places import _attention_sums as attention_sums
from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _constant_rows as constant_rows
from gnnstab.probe.places import _floors as floors
from gnnstab.probe.places import _gains as gains
from gnnstab.probe.places import _graph_level as graph_level
from gnnstab.probe.places import _graph_size as graph_size
from gnnstab.probe.places import _inputs as inputs
from gnnstab.probe.places import _left as left
from gnnstab.probe.places import _masks as masks
from gnnstab.probe.places import _normalised as normalised
from gnnstab.probe.places import _padding as padding
from gnnstab.probe.places import _parameters as parameters
from gnnstab.probe.places import _recomputed as recomputed
from gnnstab.probe.places import _retaken as retaken
from gnnstab.probe.places import _shared_answers as shared_answers
from gnnstab.probe.places import _slots as slots
from gnnstab.probe.places import _states as states
from gnnstab.probe.places import _torn as torn
from gnnstab.probe.places import _uniform as uniform
from gnnstab.probe.places import _zeros as zeros
from gnnstab.probe.places._blocking import Blocks
from gnnstab.probe.places._calls import Calls, watched
from gnnstab.probe.places._casts import Casts
from gnnstab.probe.places._overflows import Overflows
from gnnstab.probe.places._reach import Reach
from gnnstab.probe.places._unread import Unread
from gnnstab.probe.places._untold import untold
from gnnstab.probe.places.plain_tensors import PlainScores
from gnnstab.probe.replaying.recovered_loss import is_squared_error_of
from gnnstab.probe.replaying.replica import copied, eager, forked_rng, replica, rng_snapshot, tensors_in, tracked
from gnnstab.records.vocabulary import PLACE_NON_FINITE
from gnnstab.stored import is_dense

MOST_PLACES = 2000
"""Rows of one survey that are handed on."""


class Place(NamedTuple):
    """One number at one place."""

    signal: str
    """A key of `SIGNALS`, ``place.…``."""

    name: str
    """``x``, ``paper.x``, ``blocks.0.conv``, ``output``."""

    value: float
    detail: Mapping[str, Any] = {}


class ForwardView(NamedTuple):
    """What the parts of a survey read."""

    model: nn.Module
    batch: Mapping[str, Tensor]
    """Every tensor of the batch by name."""

    arguments: frozenset[str]
    """Names of those that the forward is given; the others are what the loss may read."""

    calls: Calls
    outputs: list[Tensor]
    nodes: frozenset[int]
    """Numbers of nodes, one for each kind of them."""

    graphs: Tensor | None
    """(nodes,) graph of every node; None where there is one graph, or several kinds of nodes."""

    written: Mapping[str, str]
    """Name → how code writes a tensor of the batch that stands inside of something else."""


def survey(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    batch: Any = None,
    objective: Callable[[Any], Tensor],
    rng: Any = None,
    cast: AbstractContextManager[Any] | None = None,
    came_back: Tensor | None = None,
    told: tuple[Tensor | None, float] | None = None,
) -> list[Place]:
    """Look at every place of one forward and backward.

    A copy runs, so that the model, its gradients, the arguments and the generators stay as they are.

    Args:
        model: Any module, in the mode in which it is to run.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        batch: What else the loss may read (targets, masks); its tensors are looked at as well.
        objective: Output → scalar whose gradients are looked for.
        rng: State of the generators, see `rng_snapshot`.
        cast: The autocast in which the forward runs.
        came_back: Gradient of the loss at the output, where ``objective`` is not the loss.
        told: The output that it came back to, since when the weights may have moved, and that loss; NaN while it is not known.

    Raises:
        UsageError: The model cannot be copied, or its forward fails.
    """
    try:
        with torch.enable_grad():
            own = tracked(copied(tuple(args))), tracked(copied(dict(kwargs)))
        return _survey(model, *own, batch, objective, rng, cast, came_back, told, (args, kwargs))
    except RuntimeError:
        # A forward may refuse inputs that have a gradient, as where it hands them to NumPy; operations on them are then not seen.
        return _survey(model, copied(tuple(args)), copied(dict(kwargs)), batch, objective, rng, cast, came_back, told)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """A failure of the user's code inside is no failure of gnnstab's: it is a look that is left out."""
    try:
        yield
    except RuntimeError:
        raise
    except Exception as error:
        let_through(error)
        if ours(error) and not isinstance(error, UsageError):
            raise
        raise left_out(f"the model's {what} failed on a copy: {type(error).__name__}: {error}") from error


def _survey(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batch: Any,
    objective: Callable[[Any], Tensor],
    rng: Any,
    cast: AbstractContextManager[Any] | None,
    came_back: Tensor | None,
    told: tuple[Tensor | None, float] | None,
    untracked: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None,
) -> list[Place]:
    twin = replica(model)
    named = named_tensors(args, kwargs, model)
    arguments = frozenset(named)
    if batch is not None:
        beside = named_tensors((batch,) if not isinstance(batch, tuple) else batch)
        known = {(t.shape, t.dtype, name.rsplit(".", 1)[-1]) for name, t in named.items()}
        # The forward has been given copies: a tensor that it knows by this name, or by its numbers, is not looked at twice.
        named |= {
            n: t
            for n, t in beside.items()
            if (t.shape, t.dtype, n.rsplit(".", 1)[-1]) not in known
            and n not in named
            and not (n.isdigit() and any(_same(t, other) for other in named.values()))
        }
    given = {name: tensor.detach().clone() for name, tensor in named.items()}
    rng, cast = rng_snapshot() if rng is None else rng, cast or nullcontext()

    def again() -> list[Tensor]:
        # An autocast that is entered anew before it has been left would stay on behind both.
        with forked_rng(rng), copy.copy(cast):
            return [objective(eager(twin)(*copied(tuple(args)), **copied(dict(kwargs))))]

    reach = Reach(twin, again)
    # The fused attention keeps no weights; the plain one computes the same and shows them.
    plain, casts, overflows, scores, unread = (
        sdpa_kernel(SDPBackend.MATH),
        Casts(named, twin),
        Overflows(twin),
        PlainScores(twin),
        Unread(twin),
    )
    with forked_rng(rng), torch.enable_grad(), watched(twin) as calls, cast, plain:
        with _told("forward"), casts, overflows, scores, unread:
            output = eager(twin)(*args, **kwargs)
        outputs = [t for _, t in tensors_in([output]) if is_dense(t)]
        made = parameters.made(model, twin)
        nodes = _nodes(given, calls)
        calls.name_beginnings(twin, named)
        graphs = _graphs([*batch_vectors(model, args, kwargs), *graphs_in(batch)], nodes)
        seen = ForwardView(twin, named, arguments, calls, outputs, nodes, graphs, written(args, kwargs, model))
        found = [
            Place(*row) for row in (*_before_backward(seen, given), *overflows.rows(), *scores.rows(), *unread.rows())
        ]
        found += [Place(*row) for row in made]
        end, even = floors.end_of(outputs), uniform.found(seen)
        loss = objective(output)
        if loss.isfinite().all() and all(bool(t.isfinite().all()) for t in outputs):
            found = [
                p._replace(detail={**p.detail, "masked": True}) if p.signal == PLACE_NON_FINITE else p for p in found
            ]
        fed = {id(leaf) for leaf in autograd.leaves(list(named.values()))}
        roots = [leaf for leaf in autograd.leaves([loss]) if id(leaf) not in fed]
        if roots:
            for tensor in outputs:
                if tensor.requires_grad:
                    tensor.retain_grad()
            graph_size.keep_gradients(seen)
            with closing(Blocks(seen)) as blocks:
                with _told(
                    "backward"
                ):  # What is saved has been read: a checkpoint may have computed it, and can do so only once.
                    loss.backward()  # type: ignore[no-untyped-call]
                found += [Place(*row) for row in blocks.rows()]
        found += [Place(*row) for row in casts.rows()]
        found += [
            Place(*row) for row in (*parameters.rows(seen, roots, reach), *gains.rows(seen), *zeros.rows(twin, again))
        ]
        if untracked is not None:
            found += [Place(*row) for row in recomputed.rows(model, untracked, seen, objective, rng, cast)]
        with torch.no_grad():
            found += [Place(*row) for row in shared_answers.rows(twin, again, seen)]
    found += [Place(*row) for row in uniform.rows(twin, again, even)]
    lined_up = untold(twin, args, kwargs, named) if seen.graphs is None else None
    if lined_up is None:
        found += [Place(*row) for row in alone.rows(twin, args, kwargs, named, seen.graphs, rng)]
    else:
        found += [Place(*row) for row in alone.heard(twin, args, kwargs, named, lined_up, rng)]
    found += [Place(*row) for row in constant_rows.rows(twin, args, kwargs, seen, rng, came_back)]
    asked = outputs[0].grad if roots and came_back is None and len(outputs) == 1 else came_back
    returned, value = (None, float(loss.detach())) if told is None else told
    if asked is not None and len(outputs) == 1:
        answer = outputs[0] if returned is None else returned
        raw = {n for n, t in named.items() if is_target(n) and is_squared_error_of(t, answer, asked, value)}
        found = [p._replace(detail={**p.detail, "compared": True}) if p.name in raw else p for p in found]
        found += [Place(*row) for row in left.rows(seen, answer, asked, value)]
        found += [Place(*row) for row in all_pairs.rows(seen, answer, asked, value)]
    found += [Place(*row) for row in floors.rows(seen, end, asked, value, returned)]
    found += [Place(*row) for row in (*graph_size.counted(seen, asked), *slots.rows(seen, asked))]
    with torch.no_grad():
        found += [Place(*row) for row in slots.alike_queries(twin, again, seen, asked)]
    found += [Place(*row) for row in graph_size.rows(twin, args, kwargs, seen, asked, rng)]
    return found[:MOST_PLACES]


def _same(one: Tensor, other: Tensor) -> bool:
    plain = one.layout is torch.strided is other.layout and one.device == other.device
    return plain and one.dtype == other.dtype and torch.equal(one, other)


def _before_backward(seen: ForwardView, given: Mapping[str, Tensor]) -> Iterator[tuple[Any, ...]]:
    with torch.no_grad():
        yield from inputs.rows(seen, given)
        yield from states.rows(seen)
        yield from masks.rows(seen)
        yield from retaken.rows(seen)
        yield from normalised.rows(seen)
        yield from padding.rows(seen)
        yield from graph_level.rows(seen)
        yield from torn.rows(seen)
        yield from attention_sums.rows(seen)


def _nodes(named: Mapping[str, Tensor], calls: Calls) -> frozenset[int]:
    """Rows of what is called ``x``, of each kind of nodes; else of the first matrix of numbers that comes in or is passed on."""
    own = {len(t) for name, t in named.items() if "x" in (name.rsplit(".", 1)[-1], name.split(".")[0]) and t.dim()}
    own |= {len(t) for name, t in named.items() if name.startswith("x_dict.") and t.dim()}
    if not own:
        passed = (t for call in calls.all if isinstance(call.module, MessagePassing) for t in call.entering)
        first = next((t for t in (*named.values(), *passed) if t.dim() == 2 and t.is_floating_point()), None)
        own = set() if first is None else {len(first)}
    return frozenset(own)


def _graphs(vectors: list[Tensor], nodes: frozenset[int]) -> Tensor | None:
    # The arguments and the batch that they came from hold the same one.
    found = [t for t in vectors if len(t) in nodes and t.numel()]
    # What counts per graph takes memory up to the largest number, which any file may hold.
    found = [t for t in found if int(t.min()) >= 0 and int(t.max()) < len(t)]
    return found[0] if found and len(nodes) == 1 else None


def to_json(places: list[Place]) -> str:
    """The places for a trace's metadata; what is no number is left out."""
    return json.dumps([[p.signal, p.name, p.value, dict(p.detail)] for p in places if math.isfinite(p.value)])
