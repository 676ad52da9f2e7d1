"""One live writer per trace: a lock that the kernel takes back when the writing process dies."""

from __future__ import annotations

import errno
import os
import stat
from types import ModuleType

from gnnstab.errors import TraceError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: only writers of one process are told apart there.
    fcntl = None

_FLAGS = os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))
"""A link in the place of the lock is not followed, and a pipe there not waited for."""

_LINK = (errno.ELOOP, errno.EMLINK)

LONGEST = 20
"""Bytes of the number of a process."""

_HELD: dict[tuple[int, str], WriterLock] = {}
"""By process and path: a forked child inherits the table, but none of the locks."""


class WriterLock:
    """Exclusive right to write the trace at one path, held through the file ``<path>-lock`` beside it.

    A POSIX record lock on a file of its own: it is not inherited over fork, it ends with the process, it works on
    network file systems, and closing its descriptor cannot touch the locks that SQLite holds on the trace itself.
    Record locks do not tell writers of one process apart, so those are kept in a table.
    """

    def __init__(self, path: str) -> None:
        self._key = (os.getpid(), os.path.realpath(path))
        self._path = f"{path}-lock"
        self._descriptor = -1
        # setdefault is atomic, so two threads cannot both find the place free.
        if _HELD.setdefault(self._key, self) is not self:
            raise TraceError(
                f"{path}: another Monitor or TraceWriter of this process is writing it; give each its own path"
            )
        try:
            self._acquire(path)
        except BaseException:
            _HELD.pop(self._key, None)
            raise

    def _acquire(self, path: str) -> None:
        while True:
            try:
                self._descriptor = os.open(self._path, _FLAGS, 0o644)
            except OSError as error:
                if error.errno in _LINK:
                    raise TraceError(f"{path}: {self._path} is a link; remove it or choose another folder") from None
                raise TraceError(f"{path}: cannot be written here ({error.strerror}); choose another folder") from None
            try:
                if not self._guards(path):
                    return
            except BaseException:
                os.close(self._descriptor)
                self._descriptor = -1
                raise
            # The holder may have removed the file between our open and our lock; then the lock guards nothing.
            if self._still_there():
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, str(os.getpid()).encode())
                return
            os.close(self._descriptor)

    def _guards(self, path: str) -> bool:
        """Lock the descriptor; False where the file system knows no locks."""
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise TraceError(f"{path}: {self._path} is no file of its own; remove it or choose another folder")
        content = os.read(self._descriptor, LONGEST + 1)
        # What is written here is the number of a process, so whatever else is in it belongs to somebody else.
        if content.strip(b"0123456789") or len(content) > LONGEST:
            raise TraceError(f"{path}: {self._path} is no lock of gnnstab; move it away or choose another folder")
        return self._take(path, content.decode() or "unknown")

    def _take(self, path: str, holder: str) -> bool:
        if fcntl is None:
            return False
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise TraceError(f"{path}: process {holder} is writing it; give this run its own path") from None
        except OSError:
            return False
        return True

    def _still_there(self) -> bool:
        try:
            return os.path.samestat(os.lstat(self._path), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self) -> None:
        """Give the right back and remove the lock file."""
        if self._descriptor >= 0:
            try:
                if self._still_there():
                    os.unlink(self._path)
            except OSError:
                pass  # The folder is gone or has become read-only; the kernel's lock ends with the close below.
            os.close(self._descriptor)
            self._descriptor = -1
        if _HELD.get(self._key) is self:
            del _HELD[self._key]
