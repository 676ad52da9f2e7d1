"""Layers of a dictionary that no forward calls, beside edges of the batch that nothing reads: a key that does not name its relation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from gnnstab.probe.places._reach import Reach
    from gnnstab.probe.places.survey import ForwardView

MOST_TRIED = 8
"""Relations of one dictionary that are changed to see whether the output depends on them."""


class Unmatched(NamedTuple):
    """One key, and the relation that it may have been meant for."""

    parameters: list[str]
    key: str
    relation: str


def found(seen: ForwardView, silent: Sequence[str], reach: Reach) -> Iterator[Unmatched]:
    """Of the parameters ``silent`` that no forward calls: those of a key that names nothing of the batch, beside keys that do.

    A relation that no key of the dictionary names must be left for it, and no output may depend on its edges: a layer for another phase, or for edges that
    this batch lacks, leaves none.
    """
    relations = dict(_relations(seen.batch))
    for path, module in seen.model.named_modules():
        if not isinstance(module, nn.ModuleDict):
            continue
        keys = {key: _parts(key) for key in module._modules}
        inside = {key: f"{path}.{key}." if path else f"{key}." for key in keys}
        idle = {key: [n for n in silent if n.startswith(inside[key])] for key in keys}
        strange = [key for key in keys if idle[key] and not _names(keys[key], relations)]
        free = [one for one in relations if not any(_names(keys[key], {one: relations[one]}) for key in keys)]
        if not any(_names(keys[key], relations) and not idle[key] for key in keys):
            continue
        alone = len(strange) == len(free) == 1
        pairs = [(key, one) for key in strange for one in free if _meant(keys[key], one, relations, alone=alone)]
        for key, one in pairs[:MOST_TRIED]:
            if sum(key == other or one == beside for other, beside in pairs) == 1 and reach.ignores(relations[one]):
                yield Unmatched(idle[key], ", ".join(keys[key]), ", ".join(one))


def _relations(batch: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Source, relation and target of the edges of a batch of several kinds of them."""
    for name, tensor in batch.items():
        own = next((parts for part in name.split(".") if len(parts := tuple(part.split("__"))) == 3), None)
        if own is not None and tensor.dim() == 2 and len(tensor) == 2 and not tensor.is_floating_point():
            yield own, tensor


def _parts(key: str) -> tuple[str, ...]:
    """The key of a dictionary of modules as source, relation and target; PyG joins them by three underscores."""
    plain = key.strip("<>").replace("#", ".")
    return tuple(plain.split("___" if "___" in plain else "__"))


def _names(key: tuple[str, ...], relations: Mapping[tuple[str, ...], Tensor]) -> bool:
    return key in relations if len(key) == 3 else key[-1] in {relation for _, relation, _ in relations}


def _meant(
    key: tuple[str, ...], one: tuple[str, ...], relations: Mapping[tuple[str, ...], Tensor], *, alone: bool
) -> bool:
    """True for a key that leads between the same kinds of nodes, or that differs in one kind which the batch does not hold; a bare name must be
    the only one that is left, as the relation must be."""
    if len(key) != 3:
        return alone
    if sorted((key[0], key[2])) == sorted((one[0], one[2])):
        return True
    kinds = {kind for source, _, target in relations for kind in (source, target)}
    apart = [own for own, other in zip(key, one, strict=True) if own != other]
    return len(apart) == 1 and apart[0] not in kinds
