"""A softmax or a gate whose numbers are a plain tensor of a module: no parameter, so that no optimizer moves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.probe.places._passes import Row
from gnnstab.records.vocabulary import PLACE_PLAIN_SCORES

_WEIGHS = frozenset(
    {
        *(torch.softmax, Tensor.softmax, F.softmax, torch.log_softmax, Tensor.log_softmax, F.log_softmax),
        *(torch.sigmoid, Tensor.sigmoid, F.sigmoid),
    }
)


class PlainScores(TorchFunctionMode):
    """Within the block, every such call on an attribute of ``model``, or a view of one, whose entries differ; a buffer is meant to stay as it is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._plain = {
            tensor.untyped_storage().data_ptr(): (name, key, tensor.numel())
            for name, module in model.named_modules()
            for key, tensor in plain_tensors(module)
        }
        self._found: dict[str, tuple[str, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function; look at what it was given."""
        if self._plain and func in _WEIGHS and args and type(args[0]) is Tensor and not args[0].requires_grad:
            known = self._plain.get(args[0].untyped_storage().data_ptr())
            if known is not None:
                name, key, count = known
                self._found[name] = (key, count)
        return func(*args, **(kwargs or {}))

    def rows(self) -> Iterator[Row]:
        """One for each module that holds one."""
        for name, (key, count) in self._found.items():
            yield PLACE_PLAIN_SCORES, name or "the model", float(count), {"attribute": key}


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every attribute that is one of floating-point numbers that differ, neither parameter nor buffer."""
    for key, tensor in vars(module).items():
        if type(tensor) is Tensor and tensor.layout is torch.strided and _differs(tensor):
            yield key, tensor


def _differs(tensor: Tensor) -> bool:
    return (
        tensor.is_floating_point()
        and not tensor.requires_grad
        and tensor.numel() > 1
        and bool((tensor != tensor.flatten()[0]).any())
    )
