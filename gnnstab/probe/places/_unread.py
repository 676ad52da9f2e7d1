"""Results that the model's own code computes and throws away: what a line gives, and nothing reads."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.places._dead_lines import RETURNED, codes, unread
from gnnstab.probe.places._passes import Row
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.records.vocabulary import PLACE_UNREAD_RESULT
from gnnstab.torch_private import without_torch_function

_ROWS = 4096
"""Rows that are compared."""

_DIGITS = 1e5
"""Parts of the RMS that two rows are told apart by."""

_SAME_NUMBERS = frozenset({
    *("view", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "expand_as", "permute", "transpose", "t", "contiguous", "clone", "detach"),
    *("to", "float", "double", "half", "bfloat16", "cpu", "cuda", "type", "type_as", "__getitem__", "requires_grad_"),
})  # fmt: skip
"""Functions whose result holds the numbers that they were given: nothing was computed."""

_MASKS = ("masked_fill", "where")
_SUMS = ("add", "__add__", "__radd__")


class Unread(TorchFunctionMode):
    """Within the block: what a forward of ``model`` computes in lines whose value nothing reads.

    Nothing is watched where the model's code has no such line.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model, self._modules = model, Modules(model)
        found = {id(code): (code, lines) for code in codes(model) if (lines := unread(code))}
        # Where all such values are returned nobody throws one away.
        if all(name == RETURNED for _, lines in found.values() for name in lines.values()):
            found = {}
        self._lines = found
        self._rows: dict[tuple[str, int], Row] = {}
        # Somebody who listens at a module may be why it is called.
        self._alone = [m for _, m in hookable(model) if not any(p._forward_hooks for p in m.modules())] if found else []
        self._handles: list[Any] = []
        self._before: list[Any] = []
        self._error: Exception | None = None

    def __enter__(self) -> Unread:
        if self._lines:
            for module in self._alone:
                self._handles.append(module.register_forward_pre_hook(self._called))
                self._handles.append(module.register_forward_hook(self._returned))
            super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        if self._lines:
            super().__exit__(*error)  # type: ignore[no-untyped-call]
        while self._handles:
            self._handles.pop().remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function; look at its result where nothing reads it."""
        result = func(*args, **(kwargs or {}))
        if type(result) is Tensor and self._error is None:
            try:
                frame = sys._getframe(1)
                if frame.f_code.co_name == "handle_torch_function" and frame.f_back is not None:
                    frame = frame.f_back.f_back or frame
                name = self._name(frame)
                if name is not None and not (kwargs or {}).get("out"):
                    with without_torch_function(), torch.no_grad():
                        self._look(getattr(func, "__name__", ""), [t for _, t in tensors_in([args])], result, name)
            except Exception as error:  # It is none of the forward that runs here.
                let_through(error)
                self._error = error
        return result

    def rows(self) -> Iterator[Row]:
        """One for each line; raises what went wrong while the forward ran."""
        if self._error is not None:
            raise self._error
        yield from self._rows.values()

    def _name(self, frame: FrameType | None) -> str | None:
        """What the value that a frame is about to be given is called; None where something may read it."""
        while frame is not None and (known := self._lines.get(id(frame.f_code))) is not None:
            name = known[1].get(frame.f_lasti)
            if name != RETURNED:
                return name
            frame = frame.f_back
        return None

    def _called(self, module: nn.Module, args: Any) -> None:
        name = self._name(_outside(sys._getframe(1)))
        self._before.append(None if name is None else _held(module))

    def _returned(self, module: nn.Module, args: Any, output: Any) -> None:
        before = self._before.pop() if self._before else None
        name = self._name(_outside(sys._getframe(1)))
        if name is None or before is None or before != _held(module):
            return
        given = [t for _, t in tensors_in([args])]
        for _, tensor in tensors_in([output]):
            if type(tensor) is Tensor and not any(tensor is one for one in given):
                with torch.no_grad():
                    path = next((n for n, one in self._model.named_modules() if one is module), "")
                    self._look("", given, tensor, name, path)
                return

    def _look(self, function: str, given: list[Tensor], result: Tensor, name: str, module: str = "") -> None:
        operands = [t for t in given if t.is_floating_point() and t.layout is torch.strided]
        own = result.untyped_storage().data_ptr()
        if (
            not result.is_floating_point()
            or result.dim() < 2
            or len(result) < 2
            or not operands
            or function in _SAME_NUMBERS
            or (function.endswith("_") and not function.endswith("__"))
            or function.startswith("__i")
            or any(t.untyped_storage().data_ptr() == own for t in operands)
            or (
                not module and result.numel() < max(t.numel() for t in operands)
            )  # What is counted or summed up may be for looking at.
        ):
            return
        place, _, recomputing = caller_place(self._modules, "model")
        if not place.file or recomputing:
            return
        first = next((t for t in operands if t.shape == result.shape), None)
        detail: dict[str, Any] = {"line": place.words, "code": place.text, "name": name, "shape": list(result.shape)}
        if module:
            detail["module"] = module
            detail["learns"] = any(p.requires_grad for p in self._model.get_submodule(module).parameters())
        if function.strip("_") in _MASKS:
            detail["masks"] = True
        if (
            function in _SUMS
            and len(operands) > 1
            and all(t.requires_grad and t.shape == result.shape for t in operands)
        ):
            detail["sums"] = True
        if first is not None:
            detail["changes"] = _apart(first, result)
            detail |= {"before": _distinct(first), "after": _distinct(result), "rows": result[..., 0].numel()}
        where = module or place.module or "the model"
        self._rows.setdefault((place.file, place.line), (PLACE_UNREAD_RESULT, where, float(result.numel()), detail))


def _outside(frame: FrameType | None) -> FrameType | None:
    """The frame that called a module."""
    while frame is not None and str(frame.f_globals.get("__name__", "")) in _CALLING:
        frame = frame.f_back
    return frame


_CALLING = ("torch.nn.modules.module", __name__)


def _held(module: nn.Module) -> list[Any]:
    """What a module and its parts hold, by which a call for the sake of what it keeps shows."""
    return [
        (key, id(value), getattr(value, "_version", 0), len(value) if isinstance(value, (list, dict, set)) else 0)
        for part in module.modules()
        for held in (vars(part), part._buffers)
        for key, value in held.items()
    ]


def _apart(one: Tensor, other: Tensor) -> float:
    """RMS of a difference over that of the first; infinite where an entry is."""
    difference = (other.double() - one.double()).square().mean().sqrt()
    size = float(one.double().square().mean().sqrt())
    value = float(difference) / size if size > 0 else math.inf
    return value if math.isfinite(value) else 1e30


def _distinct(tensor: Tensor) -> int:
    """Rows of the last axis that differ from one another."""
    flat = tensor.detach().reshape(-1, tensor.shape[-1])[:_ROWS].double()
    flat = flat.nan_to_num(0.0, 0.0, 0.0)
    size = float(flat.square().mean().sqrt()) or 1.0
    return len(torch.unique((flat / size * _DIGITS).round(), dim=0))
