"""Parameters of the model: their gradients every step; their size and their change in steps of the full tier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import attrgetter, is_, is_not, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.layers.lazy import unwritten
from gnnstab.probe.buffering import device_copy
from gnnstab.probe.buffering.series_ids import SeriesIds
from gnnstab.probe.buffering.stats_buffer import StatsBuffer
from gnnstab.probe.replaying.replica import replica
from gnnstab.sharding import sharded
from gnnstab.stored import bytes_of, is_finite
from gnnstab.torch_private import foreach_copy, foreach_norm, foreach_subtract

_CHUNK = 15
"""Tensors in one `put`: as many of the largest copied size as surely fit into the buffer."""

_JOINED = 1 << 12
"""Entries up to which tensors of one width are joined by a single operation; copying a larger one twice costs more."""

_TOGETHER = 1 << 16
"""Entries joined at most, half of the buffer."""

LARGEST_SAVED = 256 * 2**20
"""Bytes of weights up to which those of a step on a device are kept until it is known whether the step was finite."""


_GRADIENT = attrgetter("grad")


class _Part(NamedTuple):
    """Tensors that are recorded by one operation."""

    slots: tuple[int, ...]
    pick: Callable[[Sequence[Any]], tuple[Tensor, ...]]
    """The tensors from those of all parameters."""

    sizes: list[int]
    """Entries of each; empty for tensors that are put in as they are."""

    first: int
    """Position of the first."""


class Parameters:
    """All trainable parameters, each once, under the first of its names."""

    def __init__(self, model: nn.Module, keys: SeriesIds) -> None:
        self.names: list[str] = []
        self._model = model
        self._keys = keys
        self._parameters: list[Tensor] = []
        self._parts: dict[tuple[str, tuple[int, ...]], list[_Part]] = {}
        self._latest: dict[str, tuple[list[bool], list[_Part]]] = {}
        """Site → which tensors were there last, and their parts: most often it is the same ones again."""

        self._far: bool | None = None
        self._joins: tuple[list[_Part], Tensor, list[Tensor | None]] = ([], torch.empty(0), [])
        """Parts, and where they are joined for the norm."""

        self._before: list[Tensor] = []
        self._saved: list[Tensor] = []
        self.refresh()

    def refresh(self) -> None:
        """Look at the model anew: one that was pruned, re-initialised or grown has other parameters than before."""
        unseen = unwritten(self._model) | sharded(self._model)
        named = {name: p for name, p in self._model.named_parameters() if p.requires_grad and name not in unseen}
        same = len(named) == len(self.names) and all(
            p is named.get(name) for name, p in zip(self.names, self._parameters, strict=True)
        )
        if not same:
            self.names, self._parameters = list(named), list(named.values())
            self._parts.clear()
            self._latest.clear()
            self._before = []
        self._far = None

    def gradients(self, buffer: StatsBuffer) -> None:
        """Put every gradient that is there into ``buffer``."""
        self._far = None
        self._put(buffer, "weight_grad", list(map(_GRADIENT, self._parameters)))

    @property
    def far(self) -> bool:
        """True when a parameter is on a device that reading it would wait for; asked anew after every recorded step."""
        if self._far is None:
            self._far = not all(map(device_copy.is_on_host, self._parameters))
        return self._far

    def norm_on_device(self) -> Tensor | None:
        """L2 norm of all gradients, one entry, None without any; nothing is waited for."""
        gradients = [_entries(p.grad) for p in self._parameters if p.grad is not None]
        if not gradients:
            return None
        # In half precision a norm of its own dtype overflows at 65504.
        norms = list(
            foreach_norm(gradients, 2, torch.float32 if any(g.element_size() < 4 for g in gradients) else None)
        )
        if any(one.device != norms[0].device for one in norms):
            norms = [one.to(norms[0].device) for one in norms]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def save(self) -> bool:
        """Keep the weights as they are until the next call; False, and nothing kept, when they are larger than `LARGEST_SAVED`."""
        weights = [p.detach() for p in self._parameters]
        if bytes_of(weights) > LARGEST_SAVED:
            return False
        if [w.shape for w in self._saved] != [w.shape for w in weights]:
            self._saved = [torch.empty_like(w) for w in weights]
        foreach_copy(self._saved, weights)
        return True

    def norm(self) -> float | None:
        """L2 norm of all gradients, None without any; NaN or Inf only where an entry is.

        One product of all small gradients together, without the extremes of each.
        """
        gradients = list(map(_GRADIENT, self._parameters))
        parts = self._parts_of("weight_grad", gradients)
        if not parts:
            return None
        try:
            square = self._square(parts, gradients)
        except (RuntimeError, NotImplementedError):  # Sparse gradients, or several devices.
            square = math.nan
        # A square can leave the range of the gradients' own dtype although no entry does.
        return math.sqrt(square) if square < math.inf else _exact_norm([g for g in gradients if g is not None])

    def _square(self, parts: list[_Part], gradients: Sequence[Tensor | None]) -> float:
        """Sum of the squares of all gradients; those that are joined stand one after the other for one product."""
        if self._joins[0] is not parts:
            self._joins = (parts, *self._places(parts))
        _, flat, places = self._joins
        apart: list[Tensor] = []
        for part, place in zip(parts, places, strict=True):
            if place is None:
                apart += part.pick(gradients)
            else:
                torch.cat(part.pick(gradients), out=place)
        square = float(torch.dot(flat, flat))
        return square + _square(apart) if apart else square

    def _places(self, parts: list[_Part]) -> tuple[Tensor, list[Tensor | None]]:
        """A flat tensor, and for each part that is joined in float32 its place there."""
        joined = [bool(part.sizes) and self._parameters[part.first].dtype is torch.float32 for part in parts]
        flat = rest = torch.empty(sum(sum(part.sizes) for part, one in zip(parts, joined, strict=True) if one))
        places: list[Tensor | None] = []
        for part, one in zip(parts, joined, strict=True):
            size = sum(part.sizes) if one else 0
            places.append(rest[:size].view(-1, *self._parameters[part.first].shape[1:]) if one else None)
            rest = rest[size:]
        return flat, places

    def bad_gradients(self) -> list[str]:
        """Names of the parameters whose gradient holds a NaN or an Inf."""
        named = zip(self.names, self._parameters, strict=True)
        return [name for name, p in named if p.grad is not None and not torch.isfinite(_entries(p.grad)).all()]

    def remember(self, buffer: StatsBuffer) -> None:
        """Put the parameters into ``buffer`` before the optimizer moves them; keeps a copy until `change`."""
        self._before = [p.detach().clone() for p in self._parameters]
        self._put(buffer, "weight", self._before)

    @property
    def remembers(self) -> bool:
        """True between `remember` and `change`."""
        return bool(self._before)

    def change(self, buffer: StatsBuffer) -> bool:
        """Put the change since `remember` into ``buffer``; False without one."""
        if not self._before:
            return False
        difference = foreach_subtract([p.detach() for p in self._parameters], self._before)
        self._before = []
        self._put(buffer, "update", difference)
        return True

    def non_finite(self) -> list[str]:
        """Names of the parameters that hold a NaN or an Inf."""
        return [n for n, p in zip(self.names, self._parameters, strict=True) if not is_finite(p)]

    def saved_copy(self) -> nn.Module | None:
        """A copy of the model with the weights that the last `save` found; None where the model cannot be copied."""
        try:
            twin = replica(self._model)
        except UsageError:
            return None
        saved = dict(zip(self.names, self._saved, strict=True))
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name in saved:
                    parameter.copy_(saved[name])
        return twin

    def _put(self, buffer: StatsBuffer, site: str, tensors: Sequence[Tensor | None]) -> None:
        for part in self._parts_of(site, tensors):
            own = part.pick(tensors)
            if part.sizes and buffer.put_joined(part.slots, part.sizes, own):
                continue
            # Of a sparse gradient the entries that are stored are recorded: the others are no part of the update.
            entries = [_entries(one) for one in own]
            buffer.put(part.slots, entries, fixed=not part.sizes and all(map(is_, entries, own)))

    def _parts_of(self, site: str, tensors: Sequence[Tensor | None]) -> list[_Part]:
        there = list(map(is_not, tensors, repeat(None)))
        latest = self._latest.get(site)
        if latest is None or latest[0] != there:
            present = tuple([i for i, one in enumerate(there) if one])
            parts = self._parts.get((site, present))
            if parts is None:
                parts = self._parts[site, present] = self._new_parts(site, present)
            latest = self._latest[site] = (there, parts)
        return latest[1]

    def _new_parts(self, site: str, present: Sequence[int]) -> list[_Part]:
        alike: dict[object, list[list[int]]] = {}
        entries: dict[object, int] = {}
        apart: list[int] = []
        for i in present:
            p = self._parameters[i]
            if not device_copy.is_on_host(p) or p.dim() == 0 or not 0 < p.numel() <= _JOINED:
                apart.append(i)
                continue
            kind = (p.dtype, p.shape[1:])
            groups = alike.setdefault(kind, [[]])
            entries[kind] = entries.get(kind, 0) + p.numel()
            if entries[kind] > _TOGETHER:
                groups.append([])
                entries[kind] = p.numel()
            groups[-1].append(i)
        joined = [group for groups in alike.values() for group in groups]
        apart += [group[0] for group in joined if len(group) == 1]
        return [
            *(self._part(site, group, sized=True) for group in joined if len(group) > 1),
            *(self._part(site, apart[k : k + _CHUNK], sized=False) for k in range(0, len(apart), _CHUNK)),
        ]

    def _part(self, site: str, positions: list[int], *, sized: bool) -> _Part:
        slots = tuple(self._keys.slot(self.names[i], "train", 0, site) for i in positions)
        # Of a single position an itemgetter returns the item itself.
        pick = itemgetter(*positions) if len(positions) > 1 else lambda tensors: (tensors[positions[0]],)
        return _Part(slots, pick, [self._parameters[i].numel() for i in positions] if sized else [], positions[0])


def _square(tensors: Sequence[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(t, dtype=torch.float32 if t.element_size() < 4 else None) for t in tensors]
    return float(torch.stack(norms).double().square().sum())


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _exact_norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(_entries(g).double().square().sum()) for g in gradients))
