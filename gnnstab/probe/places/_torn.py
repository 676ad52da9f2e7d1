"""Rows of nodes that are taken for something else: a view moves their axis without a transpose, or a LayerNorm runs along it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from gnnstab.probe.places import _autograd as autograd
from gnnstab.records.vocabulary import PLACE_NORM_OVER_NODES, PLACE_TORN_ROWS

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """LayerNorms over the nodes of a set, and each module behind which a view (sets, …, nodes, …) keeps both numbers and tears the nodes.

    An axis keeps its members where as many numbers belong to one of them behind the view as before it. Nothing where another axis is
    as long, since nobody can say then which is which.
    """
    given = [t for n, t in seen.batch.items() if n in seen.arguments and t.dim() == 3 and t.is_floating_point()]
    if not given:
        return
    sets, nodes = given[0].shape[:2]
    for call in seen.calls.all:
        over = getattr(call.module, "normalized_shape", None) if isinstance(call.module, nn.LayerNorm) else None
        if over == (nodes,) and call.entering and _belonging(call.entering[0].shape, sets, nodes) == 1:
            yield PLACE_NORM_OVER_NODES, call.name, float(nodes), {"given": list(call.entering[0].shape)}
    told = set[str]()
    for node in autograd.walk(seen.outputs):
        before = (
            getattr(node, "_saved_self_sym_sizes", None)
            if type(node).__name__.startswith(autograd.SHAPES[:3])
            else None
        )
        after = next((m.shape for m in getattr(node, "_input_metadata", ())), None)
        if before is None or after is None:
            continue
        ways = [_belonging(shape, sets, nodes) for shape in (before, after)]
        place = autograd.made_by(node.next_functions[0][0], seen.calls.maker) or "output"
        if None not in ways and ways[0] != ways[1] and place not in told:
            told.add(place)
            yield PLACE_TORN_ROWS, place, float(nodes), {"before": list(before), "after": list(after)}


def _belonging(shape: Sequence[int], sets: int, nodes: int) -> int | None:
    """Numbers that belong to each node of a set; None without one axis of nodes behind that of the sets."""
    axes = [axis for axis, length in enumerate(shape) if length == nodes]
    if len(shape) < 3 or shape[0] != sets or len(axes) != 1 or axes[0] == 0:
        return None
    return math.prod(shape[axes[0] + 1 :])
