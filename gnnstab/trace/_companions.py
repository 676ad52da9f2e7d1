"""The files that SQLite opens beside a trace by name alone: whoever made the trace may have made them to harm its reader."""

from __future__ import annotations

import os
import stat
from urllib.parse import quote

from gnnstab.errors import TraceError

COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""

_MAGIC = bytes.fromhex("d9d505f920a163d7")


def check_companions(path: str) -> None:
    """Refuse a trace beside which something else than plain files stands; raises `TraceError`.

    SQLite truncates ``-shm``, creates what ``-wal`` points to, and waits for ever at a pipe. A file with a second name
    would be changed under that name as well.
    """
    base = os.path.realpath(path)  # SQLite, too, follows the links of the trace itself before it names its companions.
    for end in COMPANIONS:
        try:
            found = os.lstat(base + end)
        except OSError:
            continue
        if not stat.S_ISREG(found.st_mode):
            raise TraceError(f"{path}: {base}{end} beside it is no regular file; no gnnstab made it, remove it")
        if found.st_nlink > 1:
            raise TraceError(f"{path}: {base}{end} beside it is a link to a file with another name; remove the link")


def check_journal(path: str, journal: str) -> None:
    """Refuse a rollback journal that ends with the name of a super-journal: SQLite would delete the file of that name.

    A super-journal belongs to a transaction over several databases, which gnnstab never makes.
    """
    with open(journal, "rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - len(_MAGIC)))
        if stream.read(len(_MAGIC)) == _MAGIC:
            raise TraceError(
                f"{path}: {path}-journal names another file, which undoing the transaction would delete; "
                "no gnnstab made it, do not open this trace with SQLite"
            )


def address(path: str, mode: str) -> str:
    """The URI under which SQLite opens ``path``, e.g. with ``mode=ro``."""
    return f"file:{quote(os.fsencode(os.path.abspath(path)))}?{mode}"
