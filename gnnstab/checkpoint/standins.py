"""Inert stand-ins for harmless classes that training programs leave in their checkpoints.

torch's restricted unpickler maps a global *name* to the object given here; the class that the name belongs to is never
imported and none of its code runs. A stand-in only keeps what it was given. No real NumPy object is built either: the
state of a crafted NumPy dtype reaches unchecked C code.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any


class Inert:
    """Keeps the attributes that a pickle sets and does nothing else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__dict__["arguments"] = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


class Record(Inert):
    """Stands for argparse.Namespace and its like."""


class PathText(Inert):
    """Stands for a pathlib path."""


class DataType(Inert):
    """Stands for numpy.dtype: the code of a number, such as ``f8``."""

    def __init__(self, code: Any = "", *args: Any) -> None:
        super().__init__(code, *args)
        self.__dict__["code"] = code if isinstance(code, str) else ""


class Array(Inert):
    """Stands for a NumPy array, whose content is of no use here."""


class AttributeDictionary(dict[Any, Any]):
    """Stands for Lightning's dictionary of hyper-parameters."""


def scalar(kind: Any = None, data: Any = b"", *_: Any) -> Any:
    """A NumPy scalar as the Python number that it holds, or an `Inert` one."""
    formats = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "u8": "<Q", "b1": "<?", "f2": "<e"}
    form = formats.get(getattr(kind, "code", "")) if isinstance(kind, DataType) else None
    raw = data.encode("latin-1", "replace") if isinstance(data, str) else data
    if form is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize(form):
        return Inert()
    return struct.unpack(form, raw)[0]


def reconstruct(*_: Any) -> Array:
    """An empty `Array`, whatever shape the file asks for."""
    return Array()


STANDINS: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": Record,
    "types.SimpleNamespace": Record,
    **{f"{module}.{kind}": PathText for module in ("pathlib", "pathlib._local") for kind in (
        "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")},
    "numpy.dtype": DataType,
    "numpy.ndarray": Array,
    **{f"{module}.multiarray.{name}": function for module in ("numpy.core", "numpy._core")
       for name, function in (("scalar", scalar), ("_reconstruct", reconstruct))},
    "lightning.fabric.utilities.data.AttributeDict": AttributeDictionary,
    "lightning_fabric.utilities.data.AttributeDict": AttributeDictionary,
    "pytorch_lightning.utilities.parsing.AttributeDict": AttributeDictionary,
}  # fmt: skip
"""Global name in the file → what is built instead."""
