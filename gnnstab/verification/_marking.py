"""What results depend on, as one short mark that is the same in every process: weights, settings, batches, and the code that runs."""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

_INSTALLED = re.compile(
    "|".join(
        [
            "[/\\\\](?:site|dist)-packages[/\\\\]",
            *map(re.escape, {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}),
        ]
    )
)
"""Files whose contents a version stands for."""

_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)


def mark_of(things: Sequence[Any]) -> str:
    """Twelve hexadecimal digits of everything that is in ``things``, and of the files of the user's code that these name."""
    digest, seen, modules = hashlib.sha256(), dict[int, Any](), set[str]()
    for part in _parts(list(things), seen, modules):
        digest.update(len(part).to_bytes(8, "big") + part)
    for source in _sources(modules):
        digest.update(source)
    return digest.hexdigest()[:12]


def _parts(thing: Any, seen: dict[int, Any], modules: set[str]) -> Iterator[bytes]:
    """What tells ``thing`` from another, piece by piece; never an address, which is another one in every process."""
    inner: list[Any] = []
    yield type(thing).__qualname__.encode()
    if isinstance(thing, _PLAIN):
        yield repr(thing).encode("utf-8", "surrogatepass")
        return
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    modules.add(type(thing).__module__)
    if isinstance(thing, (Tensor, np.ndarray)):
        yield from _numbers(thing)
    elif isinstance(thing, nn.Module):
        modules.update(kind.__module__ for kind in type(thing).__mro__)
        inner = [thing._parameters, dict(thing.named_buffers(recurse=False)), thing._modules, _own(thing)]
    elif isinstance(thing, BaseData):
        inner = [thing.to_dict()]
    elif isinstance(thing, Mapping):
        inner = [part for pair in thing.items() for part in pair]
    elif isinstance(thing, (list, tuple)):
        inner = list(thing)
    elif isinstance(thing, Set):
        inner = sorted(map(repr, thing))
    elif isinstance(thing, FunctionType):
        modules.add(thing.__module__)
        yield thing.__qualname__.encode() + thing.__code__.co_code
        closed = [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
        constants = [constant for constant in thing.__code__.co_consts if isinstance(constant, _PLAIN)]
        inner = [thing.__defaults__, thing.__kwdefaults__, closed, constants]
    elif isinstance(thing, MethodType):
        inner = [thing.__func__, thing.__self__]
    elif isinstance(thing, partial):
        inner = [thing.func, thing.args, thing.keywords]
    elif isinstance(thing, type):
        modules.update(kind.__module__ for kind in thing.__mro__)
        yield thing.__qualname__.encode()
    elif is_dataclass(thing):
        inner = [getattr(thing, field.name) for field in fields(thing)]
    else:
        inner = [_own(thing)]
    for part in inner:
        yield from _parts(part, seen, modules)


def _own(thing: Any) -> dict[str, Any]:
    """The plain attributes of an object: what a layer was made with."""
    return {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if isinstance(value, (*_PLAIN, FunctionType))
    }


def _numbers(thing: Tensor | np.ndarray[Any, Any]) -> Iterator[bytes]:
    yield f"{thing.dtype}{tuple(thing.shape)}".encode()
    if isinstance(thing, np.ndarray):
        yield thing.tobytes()
        return
    plain = thing.detach().to_dense() if thing.layout != torch.strided else thing.detach()
    plain = plain.dequantize() if plain.is_quantized else plain.resolve_conj().resolve_neg()
    if plain.device.type != "meta":
        yield plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sources(names: set[str]) -> Iterator[bytes]:
    """The files of these modules and of those that they use, in order of their names; nothing of what is installed."""
    files: dict[str, bytes] = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if (
            module is None
            or name in files
            or not file
            or _INSTALLED.search(file)
            or name.partition(".")[0] == "gnnstab"
        ):
            continue
        try:
            files[name] = Path(file).read_bytes()
        except OSError:
            files[name] = b""
        todo += [
            used.__name__ if isinstance(used, ModuleType) else str(getattr(used, "__module__", ""))
            for used in list(vars(module).values())
        ]
    return (files[name] for name in sorted(files))
