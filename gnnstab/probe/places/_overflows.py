"""Operations of a forward in fp16 whose result leaves the format although their operands do not, and of which the output may show nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.places._passes import Row
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.records.vocabulary import PLACE_OVERFLOW
from gnnstab.stored import is_dense
from gnnstab.torch_private import without_torch_function

_BY_HAND = ("fill", "where", "full", "triu", "tril", "scatter", "setitem", "copy")
"""Parts of the names of functions that put a constant in its place, as a mask does."""


class Overflows(TorchFunctionMode):
    """Within the block, the first operation in each module that gives Inf in fp16 of finite numbers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules = Modules(model)
        self._found: dict[str, tuple[int, dict[str, Any]]] = {}
        self._error: Exception | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function; look at what it gives."""
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.dtype is torch.float16 and self._error is None:
            try:
                with without_torch_function(), torch.no_grad():
                    self._look(func, (args, dict(kwargs or {})), output)
            except Exception as error:  # It is none of the forward that runs here.
                let_through(error)
                self._error = error
        return output

    def rows(self) -> Iterator[Row]:
        """For every such module the entries that are lost; raises what went wrong while the forward ran."""
        if self._error is not None:
            raise self._error
        for name, (count, detail) in self._found.items():
            yield PLACE_OVERFLOW, name, float(count), detail

    def _look(self, func: Any, given: Any, output: Tensor) -> None:
        name = str(getattr(func, "__name__", ""))
        count = int(output.isinf().sum())
        if not count or any(part in name for part in _BY_HAND):
            return
        if all(bool(t.isfinite().all()) for _, t in tensors_in(given) if is_dense(t)):
            place = caller_place(self._modules, "model")[0]
            self._found.setdefault(
                place.module or "the model", (count, {"operation": name, "line": place.words, "text": place.text})
            )
