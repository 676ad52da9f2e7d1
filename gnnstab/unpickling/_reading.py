"""One torch file, from its bytes to its value."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gnnstab.archive import LARGEST_PICKLE
from gnnstab.errors import LoadError, UnsafeFileError, printable
from gnnstab.unpickling._building import Builder
from gnnstab.unpickling._files import open_torch
from gnnstab.unpickling._values import Damaged, NeedsCode, StoredTensor
from gnnstab.unpickling.guard import look_first

Records = Callable[[str], bool]
"""Says of the name of a class whether its objects may become records."""


def any_class(name: str) -> bool:
    """Every class that does not belong to Python itself."""
    return True


def read(
    file: Path,
    kind: str,
    shown: str,
    records: Records,
    code: str,
    *,
    mapped: bool = False,
    lost: list[Any] | None = None,
) -> Any:
    """The value of a ``zip`` or ``legacy`` file, its tensors looking into the file's bytes.

    Args:
        file: Where it lies.
        kind: ``zip`` or ``legacy``.
        shown: The file's name in errors.
        records: Which classes may become records.
        code: The error for a file that needs code, in which ``{}`` stands for the name of what it calls.
        mapped: Map a small file as well: it is one of many.
        lost: Takes the tensors that are attributes of tensors or of dicts, which the value leaves out, or keys.

    Raises:
        LoadError: The file is damaged or beyond the limits.
        UnsafeFileError: It needs code to be read.
    """
    look_first(shown, min(file.stat().st_size, LARGEST_PICKLE), lambda: _read(file, kind, shown, records, code, _as_is))
    value, left_out = _read(file, kind, shown, records, code, None, mapped)
    if lost is not None:
        lost += left_out
    return value


def _read(
    file: Path,
    kind: str,
    shown: str,
    records: Records,
    code: str,
    make: Callable[[StoredTensor], Any] | None,
    mapped: bool = False,
) -> tuple[Any, list[Any]]:
    try:
        opened = open_torch(file, kind, records)
        with warnings.catch_warnings():
            # Of torch, that some kinds of tensors are new or old.
            warnings.simplefilter("ignore")
            return opened.read(make or Builder(file, swapped=opened.swapped, mapped=mapped), records)
    except NeedsCode as error:
        raise UnsafeFileError(f"{shown}: {code.format(printable(str(error), 160))}") from None
    except Damaged as error:
        raise LoadError(f"{shown}: damaged or unusual: {printable(str(error), 300)}") from None
    except MemoryError:
        raise LoadError(f"{shown}: asks for more memory than there is") from None
    except RecursionError:
        raise LoadError(f"{shown}: is nested too deeply") from None
    except OSError as error:
        raise LoadError(f"{shown}: cannot be read ({printable(error.strerror or str(error), 80)})") from None


def _as_is(stored: StoredTensor) -> StoredTensor:
    return stored
