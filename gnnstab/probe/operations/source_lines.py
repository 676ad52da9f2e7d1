"""Where in the user's code an operation was called: file, line, its text, and the module whose forward it belongs to."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

from torch import nn

from gnnstab.probe.own_operations import ENGINE

LIBRARIES = ("torch", "torch_geometric", "gnnstab", "contextlib", "functools")
"""Frames of these packages are not the user's; PyG's generated code carries the name of its package."""

_DEMONSTRATION = "gnnstab.demo"
"""The one module of gnnstab that is a user of the rest."""

_DRIVERS = ("cli", "diagnosis", "observation", "verification")
"""Parts of gnnstab that call a model themselves: frames outside of theirs are no part of it."""


class Place(NamedTuple):
    """A line of the user's code."""

    file: str = ""
    """Path of the file, ``""`` when no frame of the user's was found."""

    line: int = 0
    function: str = ""
    module: str | None = None
    """Path of the innermost module whose forward was running; ``""`` is the model itself, None is outside of it."""

    part: str = ""
    """``model`` or ``loss``: what was running; ``backward`` where only the backward itself is known."""

    @property
    def text(self) -> str:
        """The line as it stands in the file; empty when the file cannot be read."""
        return linecache.getline(self.file, self.line).strip() if self.file else ""

    @property
    def words(self) -> str:
        """``line 26 of loss.py``, or nothing."""
        return f"line {self.line} of {os.path.basename(self.file)}" if self.file else ""


class Modules:
    """Finds module paths from the frames of running forwards, without a hook on any module.

    Args:
        model: The model whose modules are known.
        prefix: What stands before their paths in the names that the user knows.
    """

    def __init__(self, model: nn.Module, prefix: str = "") -> None:
        self._paths = {id(module): prefix + name for name, module in model.named_modules()}

    def path(self, frame: FrameType) -> str | None:
        """The path of the module whose method this frame runs; None when it is no method of a known module."""
        code = frame.f_code
        if not code.co_argcount or code.co_varnames[0] != "self":
            return None
        return self._paths.get(id(frame.f_locals.get("self")))


def frames(start: FrameType | None) -> Iterator[FrameType]:
    """The frames from ``start`` outwards, up to the engine that runs a backward."""
    frame = start
    while frame is not None and frame.f_code.co_name != ENGINE:
        yield frame
        frame = frame.f_back


def begins_backward() -> bool:
    """True for the operations by which torch makes the first gradient of a backward."""
    return any(frame.f_code.co_name == "_make_grads" for frame in frames(sys._getframe(2)))


def caller_place(modules: Modules, part: str) -> tuple[Place, FrameType | None, bool]:
    """The place of the running operation, the user's frame there, and whether a checkpoint is recomputing.

    The user's line is the innermost frame outside torch, torch_geometric and gnnstab, as far as the model's call reaches.
    """
    user: FrameType | None = None
    module: str | None = None
    recomputing = False
    for frame in frames(sys._getframe(2)):
        name = str(frame.f_globals.get("__name__", ""))
        if module is None:
            module = modules.path(frame)
        root, _, rest = name.partition(".")
        if root == "gnnstab" and rest.partition(".")[0] in _DRIVERS:
            break
        if root not in LIBRARIES or name == _DEMONSTRATION:
            user = user or frame
        elif name == "torch.utils.checkpoint":
            recomputing = True
        if user is not None and module is not None:
            break
    if user is None:
        return Place(module=module, part=part), None, recomputing
    code = user.f_code
    return Place(code.co_filename, user.f_lineno, code.co_name, module, part), user, recomputing
