"""Preallocated buffers: tensors go in during a step, their extremes and sums of squares come out at its end.

Inside a step a small tensor is only copied, which costs a microsecond or two, and all copies are reduced together at
the step's end; a large tensor is reduced where it stands. What is on a device is copied into a buffer there: kernels are
small, and each costs its launch. Nothing that goes in is referenced afterwards, so a later
in-place operation cannot change what was recorded and no activation is kept alive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gnnstab.probe.buffering import device_copy
from gnnstab.probe.buffering._totals import EMPTY, StatsAccumulator, Totals, merge, quietly, squares
from gnnstab.probe.buffering.device_copy import DeviceCopy
from gnnstab.torch_private import foreach_copy

CAPACITY = 1 << 17
"""Entries of the copy buffer (512 KiB of float32)."""

LARGE = 1 << 13
"""Entries from which a reduction in place is cheaper than a copy (measured on a CPU)."""

LARGE_THERE = 1 << 16
"""The same on a device, where launching a kernel costs as much as copying so many entries."""

CAPACITY_THERE = 1 << 20
"""Entries of the copy buffer of a device (8 MiB)."""

REDUCED = 512
"""Large tensors that are kept apart, as three numbers each, before they are merged."""

Refuse = Callable[[int, str], None]
"""Told about a slot whose tensor has no extremes, with the reason."""

_Index = tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], bool, Tensor | None]
_Copy = tuple[DeviceCopy, Callable[[NDArray[np.float64]], Totals]]
"""Numbers on their way, and what they are."""


class _Group:
    """Where the tensors of one `put` go; valid as long as the same slots come with the same shapes."""

    __slots__ = ("counts", "direct", "dtype", "shapes", "slots", "small", "start", "stop", "there", "views")

    def __init__(self, slots: tuple[int, ...], shapes: list[torch.Size], dtype: torch.dtype, start: int) -> None:
        self.slots = slots
        self.shapes = shapes
        self.dtype = dtype
        """That of the first tensor."""
        self.start = self.stop = start
        self.views: list[Tensor] = []
        self.counts: list[int] = []
        self.small: list[int] | None = []
        """Positions of the copied tensors in the group; None for all of them."""
        self.direct: list[int] = []
        """Positions of the tensors that are reduced where they stand."""
        self.there: StatsBuffer | None = None
        """The buffer of the device that all of them are on, or of float64."""


class PendingStats:
    """What one step has put into the buffers: numbers of the host, and those that are still on their way from a device."""

    __slots__ = ("_here", "copies")

    def __init__(self, here: Totals, copies: Sequence[_Copy] = ()) -> None:
        self._here = here
        self.copies = copies
        """What is on its way."""

    @property
    def waits(self) -> bool:
        """True when reading it now would wait for a device."""
        return bool(self.copies)

    def result(self) -> Totals:
        """One entry per slot."""
        if not self.copies:
            return self._here
        with np.errstate(all="ignore"):
            return merge([self._here, *(totals(copy.result()) for copy, totals in self.copies)])

    def along_with(self, totals: Totals) -> PendingStats:
        """The same and more of the host's numbers."""
        return PendingStats(merge([self._here, totals]), self.copies)


NO_STATS = PendingStats(EMPTY)
"""Nothing was put in."""


class StatsBuffer:
    """The buffers of one recorder.

    Args:
        refuse: Called once per slot whose tensor cannot be reduced (sparse, complex, integer).
        capacity: Entries of the copy buffer.
        device: Whose tensors are copied; None for those that are on the host.
        dtype: Format of the copies. On the host float32, which holds that and every shorter format exactly, until there is something in float64.
    """

    __slots__ = (
        "_array",
        "_buffer",
        "_copies",
        "_device",
        "_groups",
        "_index",
        "_position",
        "_reduced",
        "_reduced_counts",
        "_reduced_slots",
        "_refuse",
        "_scratch",
        "_tally",
        "_there",
        "_wide",
    )

    def __init__(
        self,
        refuse: Refuse,
        capacity: int = CAPACITY,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._device = device
        self._buffer = torch.empty(capacity, dtype=dtype, device=device or "cpu")
        self._array = self._buffer.numpy() if device is None else np.empty(0)
        self._wide: StatsBuffer | None = None
        self._scratch = np.empty(capacity if device is None else 0)
        self._there: StatsBuffer | None = None
        self._reduced: list[Tensor] = []
        self._reduced_slots: list[int] = []
        self._reduced_counts: list[int] = []
        self._copies: list[_Copy] = []
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
            if (
                group.slots is not slots
                or tensors[0].dtype is not group.dtype
                or not (fixed or group.there is not None or [tensor.shape for tensor in tensors] == group.shapes)
            ):
                group = self._place(slots, tensors)
        else:
            group = self._place(slots, tensors)
        if group.there is not None:
            group.there.put(slots, tensors, fixed=fixed)
        elif group.small is None:
            foreach_copy(group.views, tensors)
        elif group.small:
            foreach_copy(group.views, [tensors[i] for i in group.small])
        for i in group.direct:
            self._reduce(slots[i], tensors[i])
        self._position += 1

    def put_one(self, slots: tuple[int], tensor: Tensor) -> None:
        """As `put` of a single tensor."""
        groups, position = self._groups, self._position
        if position < len(groups):
            group = groups[position]
            known = group.slots is slots and group.small is None
            if known and tensor.dtype is group.dtype and tensor.shape == group.shapes[0]:
                group.views[0].copy_(tensor)
                self._position = position + 1
                return
        self.put(slots, [tensor])

    def put_joined(self, slots: tuple[int, ...], sizes: Sequence[int], tensors: Sequence[Tensor]) -> bool:
        """Record tensors of ``sizes[i]`` entries and one width under ``slots[i]``; False, and nothing recorded, where they cannot be joined.

        The same tuple object must come with the same sizes and widths. At most as many entries as the buffer has.
        """
        groups, position = self._groups, self._position
        if tensors[0].dtype is not self._buffer.dtype:
            return False
        if position < len(groups) and groups[position].slots is slots and len(groups[position].views) == 1:
            group = groups[position]
        else:
            total = sum(sizes)
            group = self._open(slots, [], tensors[0].dtype, total)
            group.small, group.counts, group.stop = None, list(sizes), group.start + total
            group.views = [self._buffer[group.start : group.stop].view(-1, *tensors[0].shape[1:])]
            self._close(group)
        try:
            torch.cat(tensors, out=group.views[0])  # type: ignore[arg-type]
        except (RuntimeError, NotImplementedError):  # Some of them may be sparse.
            return False
        self._position += 1
        return True

    def take(self) -> Totals:
        """What was put in since the last call, one entry per slot; waits for a device that has part of it."""
        return self.send().result()

    def send(self) -> PendingStats:
        """The same without waiting: what a device has reduced is on its way afterwards."""
        quietly(self._take_here)
        if self._wide is not None:
            self._tally.add(self._wide.take())
        copies, self._copies = self._copies, []
        if self._there is not None:
            copies += self._there.send().copies
        return PendingStats(self._tally.take(), copies)

    def finite_so_far(self) -> bool:
        """Whether everything was finite that was put in since the last `take`, which stays in; waits for a device."""
        totals = self.take()
        self._tally.add(totals)
        return totals.rows()[1]

    def clear(self) -> None:
        """Forget what was put in since the last `take`."""
        self._position = 0
        self._forget_reduced()
        self._copies = []
        self._tally.clear()
        for other in filter(None, (self._there, self._wide)):
            other.clear()

    def _buffer_there(self, tensors: Sequence[Tensor]) -> StatsBuffer | None:
        """The buffer on the device that all of the tensors are on, or that of float64; None for this one, and for several devices."""
        if all(map(device_copy.is_on_host, tensors)):
            if all(tensor.dtype is not torch.float64 for tensor in tensors) or self._buffer.dtype is torch.float64:
                return None
            self._wide = self._wide or StatsBuffer(self._refuse, len(self._buffer), dtype=torch.float64)
            return self._wide
        devices = {tensor.device for tensor in tensors}
        if self._there is None and len(devices) == 1 and tensors[0].device.type in ("cuda", "cpu"):
            # A device without float64 reduces every tensor where it stands.
            self._there = StatsBuffer(self._refuse, CAPACITY_THERE, tensors[0].device, torch.float64)
        return self._there if self._there is not None and devices == {self._there._device} else None

    def _place(self, slots: tuple[int, ...], tensors: Sequence[Tensor]) -> _Group:
        shapes = [tensor.shape for tensor in tensors]
        sizes = [shape.numel() for shape in shapes]
        there = self._buffer_there(tensors) if self._device is None else None
        group = self._open(
            slots, shapes, tensors[0].dtype, sum(n for n in sizes if n <= self._largest) if there is None else 0
        )
        group.there = there
        for i, (tensor, size) in enumerate(zip(tensors, sizes, strict=True) if there is None else ()):
            self._place_one(group, i, tensor, size)
        if group.small is not None and len(group.small) == len(tensors):
            group.small = None
        self._close(group)
        return group

    def _open(self, slots: tuple[int, ...], shapes: list[torch.Size], dtype: torch.dtype, needed: int) -> _Group:
        """A new group where there is room for so many entries."""
        start = self._groups[self._position - 1].stop if self._position else 0
        if start + needed > len(self._buffer):
            quietly(self._take_copies)
            start = 0
        return _Group(slots, shapes, dtype, start)

    def _close(self, group: _Group) -> None:
        """Put the group in the place of what stood there and after it."""
        del self._groups[self._position :]
        self._groups.append(group)
        self._index = None

    def _place_one(self, group: _Group, i: int, tensor: Tensor, size: int) -> None:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            self._refuse(group.slots[i], f"a {tensor.layout} tensor of {tensor.dtype} has no recorded statistics")
        elif size > self._largest or (size and self._device is None and not device_copy.is_on_host(tensor)):
            # On a device everything is reduced there: three numbers cross, and nobody waits for them.
            group.direct.append(i)
        elif size:
            assert group.small is not None
            group.small.append(i)
            group.views.append(self._buffer[group.stop : group.stop + size].view(tensor.shape))
            group.counts.append(size)
            group.stop += size

    def _reduce(self, slot: int, tensor: Tensor) -> None:
        if len(self._reduced_slots) == REDUCED:
            quietly(self._take_reduced)
        minimum, maximum = torch.aminmax(tensor)
        # Half precision is summed in float32: a norm of its own dtype overflows at 65504.
        dtype = torch.float32 if tensor.element_size() < 4 else None
        self._reduced += (minimum, maximum, torch.linalg.vector_norm(tensor, dtype=dtype))
        self._reduced_slots.append(slot)
        self._reduced_counts.append(tensor.numel())

    @property
    def _largest(self) -> int:
        return LARGE if self._device is None else LARGE_THERE

    def _take_here(self) -> None:
        self._take_copies()
        self._take_reduced()

    def _take_copies(self) -> None:
        """Reduce the copies: into the tally here, on their way to the host from a device."""
        position = self._position
        if position == 0:
            return
        self._position = 0
        index = self._index
        if index is None or index[0] != position:
            index = self._index = self._lay_out(position)
        _, slots, starts, counts, distinct, offsets = index
        if len(slots) == 0:
            return
        stop = self._groups[position - 1].stop
        if offsets is not None:
            copy = DeviceCopy([_reduce_there(self._buffer[:stop], offsets)])
            self._copies.append((copy, partial(_in_columns, slots=slots, counts=counts, distinct=distinct)))
            return
        data = self._array[:stop]
        minimum, maximum = np.minimum.reduceat(data, starts), np.maximum.reduceat(data, starts)
        square, plain = squares(data, starts, self._scratch)
        self._tally.add(Totals(slots, minimum, maximum, square, counts, distinct, plain=plain))

    def _lay_out(self, position: int) -> _Index:
        slots: list[int] = []
        counts: list[int] = []
        for group in self._groups[:position]:
            slots += group.slots if group.small is None else [group.slots[i] for i in group.small]
            counts += group.counts
        ends = np.cumsum(counts, dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if counts else ends
        offsets = None if self._device is None else _sent(np.concatenate([[0], ends]).astype(np.int64), self._device)
        distinct = len(set(slots)) == len(slots)
        return position, np.array(slots, np.int64), starts, np.array(counts, np.float64), distinct, offsets

    def _take_reduced(self) -> None:
        if not self._reduced_slots:
            return
        parts, slots, counts = self._reduced, self._reduced_slots, self._reduced_counts
        if all(map(device_copy.is_on_host, parts)):
            self._tally.add(_reduced(torch.stack(parts).double().numpy(), slots, counts))
        else:
            self._copies.append((DeviceCopy(parts), partial(_reduced, slots=slots, counts=counts)))
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
        np.array(counts, np.float64),
        distinct,
        exact=False,
    )


def _reduce_there(data: Tensor, offsets: Tensor) -> Tensor:
    """(3 n,) minimum, maximum and sum of squares of the segments between n + 1 offsets; nothing waits for the device."""
    reduced = [torch.segment_reduce(data, kind, offsets=offsets, unsafe=True) for kind in ("min", "max")]
    return torch.cat([*reduced, torch.segment_reduce(data * data, "sum", offsets=offsets, unsafe=True)])


def _in_columns(
    numbers: NDArray[np.float64], slots: NDArray[np.int64], counts: NDArray[np.float64], distinct: bool
) -> Totals:
    """Totals of what `_reduce_there` has returned."""
    minimum, maximum, square = numbers.reshape(3, -1)
    return Totals(slots, minimum, maximum, square, counts, distinct)


def _sent(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """The numbers on a device; pinned, so that nobody waits until they are there."""
    host = torch.from_numpy(numbers)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
