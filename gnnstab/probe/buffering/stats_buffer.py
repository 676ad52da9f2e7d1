"""Preallocated buffers: tensors go in during a step, their extremes and sums of squares come out at its end.

Inside a step a small tensor is only copied, which costs a microsecond or two, and all copies are reduced together at
the step's end; a large tensor is reduced where it stands. Nothing that goes in is referenced afterwards, so a later
in-place operation cannot change what was recorded and no activation is kept alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnstab.probe.buffering import device_copy
from gnnstab.probe.buffering._totals import EMPTY, StatsAccumulator, Totals, merge
from gnnstab.probe.buffering.device_copy import DeviceCopy
from gnnstab.torch_private import foreach_copy

CAPACITY = 1 << 17
"""Entries of the copy buffer (1 MiB of float64)."""

LARGE = 1 << 13
"""Entries from which a reduction in place is cheaper than a copy (measured on a CPU)."""

REDUCED = 512
"""Large tensors that are kept apart, as three numbers each, before they are merged."""

Refuse = Callable[[int, str], None]
"""Told about a slot whose tensor has no extremes, with the reason."""


_Index = tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], bool]


class _Group:
    """Where the tensors of one `put` go; valid as long as the same slots come with the same shapes."""

    __slots__ = ("counts", "direct", "shapes", "slots", "small", "start", "stop", "views")

    def __init__(self, slots: tuple[int, ...], shapes: list[torch.Size], start: int) -> None:
        self.slots = slots
        self.shapes = shapes
        self.start = self.stop = start
        self.views: list[Tensor] = []
        self.counts: list[int] = []
        self.small: list[int] | None = []
        """Positions of the copied tensors in the group; None for all of them."""
        self.direct: list[int] = []
        """Positions of the tensors that are reduced where they stand."""


class PendingStats:
    """What one step has put into the buffers: numbers of the host, and those that are still on their way from a device."""

    __slots__ = ("_copies", "_here")

    def __init__(self, here: Totals, copies: Sequence[tuple[DeviceCopy, list[int], list[int]]] = ()) -> None:
        self._here = here
        self._copies = copies

    @property
    def waits(self) -> bool:
        """True when reading it now would wait for a device."""
        return bool(self._copies)

    def result(self) -> Totals:
        """One entry per slot."""
        if not self._copies:
            return self._here
        with np.errstate(all="ignore"):
            return merge([self._here, *(_reduced(f.result(), slots, counts) for f, slots, counts in self._copies)])

    def along_with(self, totals: Totals) -> PendingStats:
        """The same and more of the host's numbers."""
        return PendingStats(merge([self._here, totals]), self._copies)


NO_STATS = PendingStats(EMPTY)
"""Nothing was put in."""


class StatsBuffer:
    """The buffers of one recorder.

    Args:
        refuse: Called once per slot whose tensor cannot be reduced (sparse, complex, integer).
    """

    __slots__ = (
        "_array",
        "_buffer",
        "_copies",
        "_groups",
        "_index",
        "_position",
        "_reduced",
        "_reduced_counts",
        "_reduced_slots",
        "_refuse",
        "_scratch",
        "_tally",
    )

    def __init__(self, refuse: Refuse, capacity: int = CAPACITY) -> None:
        # float64 holds every floating dtype exactly and its squares neither overflow nor vanish.
        self._buffer = torch.empty(capacity, dtype=torch.float64)
        self._array = self._buffer.numpy()
        self._scratch = np.empty(capacity)
        self._reduced: list[Tensor] = []
        self._reduced_slots: list[int] = []
        self._reduced_counts: list[int] = []
        self._copies: list[tuple[DeviceCopy, list[int], list[int]]] = []
        self._groups: list[_Group] = []
        self._position = 0
        self._index: _Index | None = None
        self._tally = StatsAccumulator()
        self._refuse = refuse

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, which never grow."""
        return self._array.nbytes + self._scratch.nbytes

    def put(self, slots: tuple[int, ...], tensors: list[Tensor], *, fixed: bool = False) -> None:
        """Record ``tensors[i]`` under ``slots[i]``; gradients must be switched off by the caller.

        The same tuple object should come with every step: then a repetition of shapes costs one comparison, and none
        with ``fixed``, which says that these slots always come with the same shapes.
        """
        groups, position = self._groups, self._position
        if position < len(groups):
            group = groups[position]
            if group.slots is not slots or not (fixed or [tensor.shape for tensor in tensors] == group.shapes):
                group = self._place(slots, tensors)
        else:
            group = self._place(slots, tensors)
        if group.small is None:
            foreach_copy(group.views, tensors)
        elif group.small:
            foreach_copy(group.views, [tensors[i] for i in group.small])
        for i in group.direct:
            self._reduce(slots[i], tensors[i])
        self._position += 1

    def put_joined(self, slots: tuple[int, ...], sizes: Sequence[int], tensor: Tensor) -> None:
        """Record ``sizes[i]`` entries after the other of one strided tensor on the CPU under ``slots[i]``.

        The same tuple object must come with the same sizes. At most as many entries as the buffer has.
        """
        groups, position = self._groups, self._position
        if position < len(groups) and groups[position].slots is slots:
            group = groups[position]
        else:
            group = self._open(slots, [tensor.shape], tensor.numel())
            group.small, group.counts, group.stop = None, list(sizes), group.start + tensor.numel()
            group.views = [self._buffer[group.start : group.stop].view(tensor.shape)]
            self._close(group)
        group.views[0].copy_(tensor)
        self._position += 1

    def take(self) -> Totals:
        """What was put in since the last call, one entry per slot; waits for a device that has part of it."""
        return self.send().result()

    def send(self) -> PendingStats:
        """The same without waiting: what a device has reduced is on its way afterwards."""
        with np.errstate(all="ignore"):
            self._tally.add(self._take_copies())
            self._take_reduced()
        copies, self._copies = self._copies, []
        return PendingStats(self._tally.take(), copies)

    def clear(self) -> None:
        """Forget what was put in since the last `take`."""
        self._position = 0
        self._forget_reduced()
        self._copies = []
        self._tally.clear()

    def _place(self, slots: tuple[int, ...], tensors: Sequence[Tensor]) -> _Group:
        shapes = [tensor.shape for tensor in tensors]
        sizes = [shape.numel() for shape in shapes]
        group = self._open(slots, shapes, sum(size for size in sizes if size <= LARGE))
        for i, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
            self._place_one(group, i, tensor, size)
        if group.small is not None and len(group.small) == len(tensors):
            group.small = None
        self._close(group)
        return group

    def _open(self, slots: tuple[int, ...], shapes: list[torch.Size], needed: int) -> _Group:
        """A new group where there is room for so many entries."""
        start = self._groups[self._position - 1].stop if self._position else 0
        if start + needed > len(self._array):
            with np.errstate(all="ignore"):
                self._tally.add(self._take_copies())
            start = 0
        return _Group(slots, shapes, start)

    def _close(self, group: _Group) -> None:
        """Put the group in the place of what stood there and after it."""
        del self._groups[self._position :]
        self._groups.append(group)
        self._index = None

    def _place_one(self, group: _Group, i: int, tensor: Tensor, size: int) -> None:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            self._refuse(group.slots[i], f"a {tensor.layout} tensor of {tensor.dtype} has no recorded statistics")
        elif size > LARGE or (size and not device_copy.is_on_host(tensor)):
            # On another device everything is reduced there: three numbers cross, and nobody waits for them.
            group.direct.append(i)
        elif size:
            assert group.small is not None
            group.small.append(i)
            group.views.append(self._buffer[group.stop : group.stop + size].view(tensor.shape))
            group.counts.append(size)
            group.stop += size

    def _reduce(self, slot: int, tensor: Tensor) -> None:
        if len(self._reduced_slots) == REDUCED:
            with np.errstate(all="ignore"):
                self._take_reduced()
        minimum, maximum = torch.aminmax(tensor)
        # Half precision is summed in float32: a norm of its own dtype overflows at 65504.
        dtype = torch.float32 if tensor.element_size() < 4 else None
        self._reduced += (minimum, maximum, torch.linalg.vector_norm(tensor, dtype=dtype))
        self._reduced_slots.append(slot)
        self._reduced_counts.append(tensor.numel())

    def _take_copies(self) -> Totals:
        position = self._position
        if position == 0:
            return EMPTY
        self._position = 0
        index = self._index
        if index is None or index[0] != position:
            index = self._index = self._lay_out(position)
        _, slots, starts, counts, distinct = index
        if len(slots) == 0:
            return EMPTY
        stop = self._groups[position - 1].stop
        data, scratch = self._array[:stop], self._scratch[:stop]
        np.multiply(data, data, out=scratch)
        return Totals(
            slots,
            np.minimum.reduceat(data, starts),
            np.maximum.reduceat(data, starts),
            np.add.reduceat(scratch, starts),
            counts,
            distinct,
        )

    def _lay_out(self, position: int) -> _Index:
        slots: list[int] = []
        counts: list[int] = []
        for group in self._groups[:position]:
            slots += group.slots if group.small is None else [group.slots[i] for i in group.small]
            counts += group.counts
        ends = np.cumsum(counts, dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if counts else ends
        return position, np.array(slots, np.int64), starts, np.array(counts, np.int64), len(set(slots)) == len(slots)

    def _take_reduced(self) -> None:
        if not self._reduced_slots:
            return
        parts, slots, counts = self._reduced, self._reduced_slots, self._reduced_counts
        if all(map(device_copy.is_on_host, parts)):
            self._tally.add(_reduced(torch.stack(parts).double().numpy(), slots, counts))
        else:
            self._copies.append((DeviceCopy(parts), slots, counts))
        self._forget_reduced()

    def _forget_reduced(self) -> None:
        self._reduced, self._reduced_slots, self._reduced_counts = [], [], []


def _reduced(numbers: NDArray[np.float64], slots: list[int], counts: list[int]) -> Totals:
    """Totals of tensors that were reduced where they stood, three numbers each."""
    columns = numbers.reshape(-1, 3)
    distinct = len(set(slots)) == len(slots)
    return Totals(
        np.array(slots),
        columns[:, 0],
        columns[:, 1],
        columns[:, 2] ** 2,
        np.array(counts),
        distinct,
        exact=False,
    )
