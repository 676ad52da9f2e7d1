"""Looks at a stranger's file in a forked child first, with limits of the operating system on its memory and time.

The rules of `machine` are meant to bound what a file can cost. The child is for what nobody thought of: whatever it
does to the child costs this process one line. The child runs Python alone, no operation of torch and none of its threads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable

from gnnstab.errors import LoadError, UnsafeFileError, printable

SECONDS, SECONDS_PER_MIB = 10, 5
"""Processor time of the child, and what every MiB of the pickle adds."""

MEMORY, MEMORY_PER_BYTE = 512 * 2**20, 64
"""Bytes that the child may ask for beyond what this process has, and what every byte of the pickle adds."""

WAITING = 300
"""Seconds until the child is given up for hung, on a machine as busy as may be."""

_ENTIRE = 1 << 16
"""Bytes of an answer; more does not fit into a pipe at once."""


def available() -> bool:
    """True where children are made: Linux. Elsewhere forking is not safe, or the limits are not kept."""
    return sys.platform.startswith("linux") and hasattr(os, "fork")


def look_first(shown: str, size: int, read: Callable[[], object]) -> None:
    """Run ``read`` in a child; return when it ends well, raise what it raises, or `LoadError` when it does not end well.

    ``size`` is the number of bytes of the pickle or header, after which the limits are measured. Where no child can be
    made nothing is done.
    """
    if not available():
        return
    import resource

    reader, writer = os.pipe()
    try:
        with warnings.catch_warnings():
            # Other threads hold no lock that the child takes: it neither logs nor imports nor computes with torch.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        return
    seconds = SECONDS + SECONDS_PER_MIB * (size >> 20)
    if child == 0:
        limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: seconds}
        _run(read, writer, limits, MEMORY + MEMORY_PER_BYTE * size)
    os.close(writer)
    answer, status = b"", None
    try:
        answer, status = _answer(reader, child, time.monotonic() + WAITING)
    finally:
        os.close(reader)
        status = _end(child, status)
    _tell(shown, answer, status, seconds)


def _run(read: Callable[[], object], writer: int, limits: dict[int, int], memory: int) -> None:
    """The child's whole life."""
    try:
        gc.disable()  # What is garbage of the parent is not the child's to finalise.
        faulthandler.disable()
        _limit(limits, memory)
        try:
            read()
            answer = b"good"
        except LoadError as error:
            kind = b"code" if isinstance(error, UnsafeFileError) else b"load"
            answer = kind + str(error).encode("utf-8", "backslashreplace")
        except MemoryError:
            answer = b"memo"
        except BaseException as error:
            answer = b"else" + type(error).__name__.encode("utf-8", "backslashreplace")
        os.write(writer, answer[:_ENTIRE])
    finally:
        os._exit(0)


def _limit(limits: dict[int, int], memory: int) -> None:
    import resource

    with open("/proc/self/statm", "rb") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    for what, limit in {**limits, resource.RLIMIT_AS: now + memory}.items():
        most = resource.getrlimit(what)[1]
        limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(what, (limit, limit))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)


def _answer(reader: int, child: int, until: float) -> tuple[bytes, int | None]:
    """What the child says before it ends, and its status once that is known.

    The end of the pipe is not waited for: another thread may have forked as well, and its child then holds the pipe open.
    """
    status: int | None = None
    while status is None and time.monotonic() < until:
        if select.select([reader], [], [], 0.2)[0]:
            return os.read(reader, _ENTIRE), None
        with contextlib.suppress(ChildProcessError):
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended else None
    return b"", status


def _end(child: int, status: int | None) -> int | None:
    """Make sure that the child is gone; its status, or None when somebody else has asked for it."""
    if status is not None:
        return status
    try:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)  # It has said what it had to say, or hangs.
            status = os.waitpid(child, 0)[1]
    except (ChildProcessError, ProcessLookupError):
        return None
    return status


def _tell(shown: str, answer: bytes, status: int | None, seconds: int) -> None:
    kind, text = answer[:4], answer[4:].decode("utf-8", "replace")
    told = {
        b"code": UnsafeFileError(text),
        b"load": LoadError(text),
        b"memo": LoadError(f"{shown}: asks for more memory than a file of its size needs"),
        b"else": LoadError(f"{shown}: truncated or damaged ({printable(text, 60)})"),
    }
    if kind == b"good":
        return
    if kind in told:
        raise told[kind]
    number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        raise LoadError(f"{shown}: takes more than {seconds} s to look through, or more memory than there is; refused")
    raise LoadError(f"{shown}: brings down the process that looks at it (signal {number}); refused")
