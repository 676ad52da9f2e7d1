"""Giving back pages of a memory-mapped file once they have been read.

The system counts every page of a mapped file that was touched as memory of this process. Reading 8 GiB once would look
like needing 8 GiB; telling the system that the pages are no longer needed keeps the figure at what is really in use.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from pathlib import Path

from torch import Tensor


class MappedFiles:
    """The ranges of this process' memory that mirror files, as they are when this object is made."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        table = Path("/proc/self/maps")
        if not sys.platform.startswith("linux") or not table.exists():
            return
        self._advise = ctypes.CDLL(None).madvise
        for line in table.read_text(errors="replace").splitlines():
            span, _, _, _, inode = line.split(maxsplit=5)[:5]
            if inode != "0":
                start, _, end = span.partition("-")
                self._starts.append(int(start, 16))
                self._ends.append(int(end, 16))

    def release(self, tensor: Tensor) -> None:
        """Drop the whole pages under a contiguous tensor, if they mirror a file; elsewhere do nothing.

        Only ranges that the system lists as file-backed are touched, since dropping any other page would lose its data.
        Nothing is ever written to these pages, so that reading them again brings back the file's content.
        """
        size = mmap.PAGESIZE
        start = -(-tensor.data_ptr() // size) * size
        end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // size * size
        place = bisect_right(self._starts, start) - 1
        if end <= start or place < 0 or end > self._ends[place]:
            return
        self._advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(mmap.MADV_DONTNEED))
