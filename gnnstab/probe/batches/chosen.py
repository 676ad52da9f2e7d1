"""Of several batches: which are run, which one is looked at most closely, and which hold nothing to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.probe.batches.arguments import Arguments, is_empty
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import LARGE

Batches = Sequence[tuple[Arguments, Any]]
"""Arguments of every forward, and the batch as the loss wants to see it."""

MOST_RUN = 128
"""Batches of a list that are run, at a twentieth of a second and more each; a file of a few kilobytes may list one graph a million times."""


class Chosen(NamedTuple):
    """What is run of a list of batches."""

    run: Batches
    closest: int
    """Position in ``run`` of the batch whose places are looked at: the first with nodes, or the one that deviates most from it."""

    unseen: list[str]
    """What is not seen of the others, in words."""


def chosen(batches: Batches) -> Chosen:
    """The batches that are run: of a long list the first ones, and the one that deviates most by its numbers.

    A batch deviates that holds NaN or Inf, or a tensor more than `LARGE` times as large as that of the same name in the first.
    """
    empty = [is_empty(arguments) for arguments, _ in batches]
    unseen = [f"{sum(empty)} of {len(batches)} batches, which hold no node"] if any(empty) else []
    first = empty.index(False)
    closest, excess = _furthest(batches, first) if len(batches) > 1 else (first, {})
    own, _ = batches[closest]
    if any(LARGE < excess.get(name, 0.0) < math.inf for name in named_tensors(*own)):
        unseen.append(
            f"what means over the batches hide of number {closest + 1}, whose inputs are far larger: pass it by itself"
        )
    if len(batches) > MOST_RUN:
        unseen.append(f"{len(batches) - MOST_RUN} of {len(batches)} batches, of which {MOST_RUN} are run")
        last = max(closest, MOST_RUN - 1)
        batches, closest = [*batches[: MOST_RUN - 1], batches[last]], min(closest, MOST_RUN - 1)
    return Chosen(batches, closest, unseen)


def _furthest(batches: Batches, first: int) -> tuple[int, dict[str, float]]:
    """Position of the batch that deviates most from the ``first``, and how many times as large each of its tensors is."""
    known, best, chosen = _sizes(*batches[first]), dict[str, float](), first
    seen: set[int] = set()
    for place, (arguments, batch) in enumerate(batches):
        if id(batch) in seen:  # A list may hold one batch again and again.
            continue
        seen.add(id(batch))
        sizes = _sizes(arguments, batch)
        above = {name: size / known[name] for name, size in sizes.items() if 0 < known.get(name, 0.0) < math.inf}
        if max(above.values(), default=0.0) > max([LARGE, *best.values()]):
            best, chosen = above, place
    return chosen, best


def _sizes(arguments: Arguments, batch: Any) -> dict[str, float]:
    """Name → RMS of every tensor of real numbers, inf where it holds NaN or Inf; targets are among them."""
    beside = named_tensors(batch if isinstance(batch, tuple) else (batch,))
    return {name: _size(t) for name, t in {**named_tensors(*arguments), **beside}.items() if t.is_floating_point()}


def _size(tensor: Tensor) -> float:
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return 0.0
    size = float(tensor.detach().double().square().mean().sqrt())
    return size if size < math.inf else math.inf
