"""Counting the instructions of this process, which what else the machine does hardly changes."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

SYSCALL = {"x86_64": 298, "aarch64": 241}
"""Numbers of ``perf_event_open``, which the C library has no function for."""

_HARDWARE, _INSTRUCTIONS = 0, 1
_INHERIT, _NO_KERNEL, _NO_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6
_SIZE = 64
"""Bytes of the first version of ``struct perf_event_attr``."""


class Instructions:
    """Instructions in user mode of the thread that makes it and of all threads that this one starts from then on.

    Raises `OSError` where the system does not count them, or not for everybody.
    """

    def __init__(self) -> None:
        flags = _INHERIT | _NO_KERNEL | _NO_HYPERVISOR
        wish = struct.pack("IIQQQQQ", _HARDWARE, _SIZE, _INSTRUCTIONS, 0, 0, 0, flags).ljust(_SIZE, b"\0")
        number = SYSCALL.get(platform.machine(), -1)
        self._file = ctypes.CDLL(None, use_errno=True).syscall(number, wish, 0, -1, -1, 0)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "instructions cannot be counted here")

    def count(self) -> int:
        """How many there were so far."""
        return int.from_bytes(os.read(self._file, 8), "little")
