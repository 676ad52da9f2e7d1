"""Which parameter an optimizer's entry belongs to.

An optimizer's state dict holds numbers, not names. Its entries follow the order in which the program handed over the
parameters, usually that of the state dict, and the shapes of the moments must agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gnnstab.checkpoint._optimizer import OptimizerState

Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""(parameter name, shape) in file order."""


def matching_names(optimizer: OptimizerState, networks: Mapping[str, Shapes]) -> tuple[dict[int, str], str]:
    """Entry index → parameter name for every entry whose parameter is certain, and one line on how it was found.

    Tried in turn: names kept by the optimizer itself, all parameters of the file, the parameters of one network.
    """
    total = len(optimizer.entries)
    everything = [pair for shapes in networks.values() for pair in shapes]
    known = {name for name, _ in everything}
    kept = {i: e.name for i, e in enumerate(optimizer.entries) if e.name is not None and e.name in known}
    # Parameters that are equal throughout count once in a file, so that an entry may bear the name of the other one.
    if kept and all(entry.name is not None for entry in optimizer.entries):
        return kept, f"{optimizer.path}: {total} entries, names kept by the optimizer"
    if not any(entry.shape for entry in optimizer.entries):
        return {}, f"{optimizer.path}: {total} entries without moments"
    options = [everything] if len(networks) == 1 else [everything, *networks.values()]
    complete = [found for shapes in options if len(found := _certain(optimizer, shapes)) == total]
    if len(networks) > 1 and len(complete) > 1:
        complete = _by_path(optimizer, networks)
    if len(complete) == 1:
        return complete[0], f"{optimizer.path}: {total} entries tied to parameters by order, shapes checked"
    if len(networks) == 1 and (partial := _certain(optimizer, everything)):
        return (
            partial,
            f"{optimizer.path}: {len(partial)} of {total} entries tied to parameters by order and shape, the others are ambiguous",
        )
    return {}, f"{optimizer.path}: {total} entries that cannot be tied to parameters by order and shape; not judged"


def _by_path(optimizer: OptimizerState, networks: Mapping[str, Shapes]) -> list[dict[int, str]]:
    """The fit whose network is named in the optimizer's own path, as ``actor`` is in ``actor_optimizer``."""
    named = [shapes for prefix, shapes in networks.items() if prefix and prefix.split(".")[0] in optimizer.path]
    return [found for shapes in named if len(found := _certain(optimizer, shapes)) == len(optimizer.entries)]


def _certain(optimizer: OptimizerState, shapes: Shapes) -> dict[int, str]:
    """Entries that every order-keeping assignment of entries to parameters gives to the same parameter.

    The leftmost and the rightmost assignment bound all others, so that where the two agree there is no choice.
    """
    wanted = [entry.shape for entry in optimizer.entries]
    left = _greedy(wanted, [shape for _, shape in shapes])
    right = _greedy(wanted[::-1], [shape for _, shape in shapes][::-1])
    if left is None or right is None:
        return {}
    last = len(shapes) - 1
    back = [last - position for position in reversed(right)]
    return {i: shapes[a][0] for i, (a, b) in enumerate(zip(left, back, strict=True)) if a == b}


def _greedy(wanted: Sequence[tuple[int, ...] | None], shapes: Sequence[tuple[int, ...]]) -> list[int] | None:
    """Earliest positions in ``shapes`` that hold ``wanted`` in order (None fits anything), or None."""
    positions: list[int] = []
    at = 0
    for shape in wanted:
        while at < len(shapes) and shape is not None and shapes[at] != shape:
            at += 1
        if at >= len(shapes):
            return None
        positions.append(at)
        at += 1
    return positions
