"""What strangers put into files: code in a pickle, and archives whose members were changed."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def repacked(
    archive: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A torch archive with the members that ``change`` makes of the name and content of each, with right checksums."""
    out = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(out, "w", compression) as new,
    ):
        warnings.simplefilter("ignore")  # Of a second member of one name.
        for member in old.namelist():
            for name, data in change(member, old.read(member)):
                new.writestr(name, data)
    return out.getvalue()


def rewritten(archive: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """A torch archive with other contents under the same names."""
    return repacked(archive, lambda name, data: [(name, change(name, data))])


def compressed(archive: bytes) -> bytes:
    """A torch archive as torch never writes it, but reads it: how a small file is made to fill the memory."""
    return repacked(archive, lambda name, data: [(name, data)], zipfile.ZIP_DEFLATED)
