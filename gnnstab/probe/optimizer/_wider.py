"""The same steps in float32, of a model that is trained under autocast in 16 bits, and the first line whose result is one number there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.optimizer._suspects import Suspect, unchanged
from gnnstab.probe.replaying.replica import mapped
from gnnstab.torch_private import without_torch_function

_HALVES = (torch.float16, torch.bfloat16)


def in_16_bits(dtype: torch.dtype | None, model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The autocast of ``dtype`` that ``forward`` of ``model``, a copy, runs under, and where it rounds to one number; nothing where it is none of 16 bits.

    A trial without it undoes it.
    """
    if dtype not in _HALVES:
        return
    with _OneNumber(Modules(model)) as mode:
        forward()
    names = (mode.module,) if mode.module else ()
    where = f", where {mode.said}" if mode.said else ""
    words = f"forward and loss run under autocast in {str(dtype).removeprefix('torch.')}{where}"
    yield Suspect("precision", names, "computing all of it in float32", words, unchanged)


class _OneNumber(TorchFunctionMode):
    """Within the block: the first function whose result in 16 bits is one number throughout, and is not where it is given the same in float32."""

    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.module, self.said = "", ""
        self._modules = modules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = dict(kwargs or {})
        output = func(*args, **kwargs)
        half = isinstance(output, Tensor) and output.dtype in _HALVES and output.numel() > 1
        if half and not self.said and _one(output):
            try:
                with without_torch_function(), torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                    wide = func(*mapped(tuple(args), _widened), **mapped(kwargs, _widened))
                # A view of one number, or a constant, is one number in every format; so is what was one before.
                if isinstance(wide, Tensor) and wide.dtype is torch.float32 and not _one(wide):
                    self._tell(str(getattr(func, "__name__", "an operation")).strip("_"), output)
            except Exception as error:  # A function may take no other format.
                let_through(error)
        return output

    def _tell(self, name: str, output: Tensor) -> None:
        place = caller_place(self._modules, "model")[0]
        self.module = place.module or ""
        line = f" ({place.words})" if place.words else ""
        self.said = (
            f"{name} gives {float(output.detach().flatten()[0]):.3g} in every entry{line} and float32 tells them apart"
        )


def _one(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _widened(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.dtype in _HALVES else tensor.detach()
