"""Sums over nodes outside of layers, of PyG's ``global_add_pool`` and of the model's own code: seen, and turned into means for a trial."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch_geometric.nn.pool import glob
from torch_geometric.utils import scatter

from gnnstab.probe._matrix_sums import is_product, terms
from gnnstab.probe.layers.group_sums import GROUP_SUMS, group_sum
from gnnstab.probe.written_sums import written_sum
from gnnstab.records import Measure
from gnnstab.records.vocabulary import POOL_SUM_SIZE, SUM_BY_HAND_SIZE
from gnnstab.torch_private import without_torch_function

_SUMS = ("sum", "add")


GROUP = 8
"""Rows of the largest group from which on a sum counts."""

GROWS = 0.5
"""Exponent of the group's size with which the norm of a sum grows from which on it is no mean."""

_WIDTH = 4
"""Columns of what is summed; narrower sums are counts, denominators and scores."""

_HANDED_ON = ("torch.", "torch_geometric.utils._scatter", "torch_geometric.utils._spmm", "torch_geometric.nn.aggr.")
"""Modules whose functions add up for who calls them."""

_IN_PLACE = frozenset({Tensor.div_, Tensor.mul_})
_RESCALES = frozenset(
    {
        *(torch.div, torch.divide, torch.true_divide, torch.mul, torch.multiply, Tensor.div, Tensor.divide),
        *(Tensor.true_divide, Tensor.__truediv__, Tensor.mul, Tensor.multiply, *_IN_PLACE),
    }
)


@dataclass
class Sums:
    """What adds up rows within one forward."""

    pooled: list[int] = field(default_factory=list)
    """Nodes of the largest graph of every pooling by a sum."""

    by_hand: list[tuple[int, dict[str, str | int]]] = field(default_factory=list)
    """Rows of the largest group of every sum of features that the model's own code takes, and that grows with the group; and how
    the code writes it, see `written_sum`."""

    def measures(self, step: int, mode: str) -> list[Measure]:
        """The largest of each kind."""
        found: list[tuple[str, int, dict[str, str | int]]] = []
        if self.pooled:
            found.append((POOL_SUM_SIZE, max(self.pooled), {}))
        if self.by_hand:
            found.append((SUM_BY_HAND_SIZE, *max(self.by_hand, key=lambda one: one[0])))
        return [Measure(step, "", mode, 0, name, -1, float(size), json.dumps(how)) for name, size, how in found]


@contextmanager
def sums_watched(*, pool_mean: bool = False, mean: bool = False) -> Iterator[Sums]:
    """Inside, poolings by a sum and sums by an index are noted; ``pool_mean`` and ``mean`` have them take the mean."""
    seen = Sums()

    def watched(src: Tensor, index: Tensor, *args: Any, reduce: str = "sum", **kwargs: Any) -> Tensor:
        if reduce in _SUMS and index.numel():
            seen.pooled.append(int(torch.bincount(index).max()))
            reduce = "mean" if pool_mean else reduce
        with without_torch_function():
            result: Tensor = scatter(src, index, *args, reduce=reduce, **kwargs)
        return result

    before, glob.scatter = glob.scatter, watched
    try:
        with _ByHand(seen.by_hand, mean):
            yield seen
    finally:
        glob.scatter = before


class _ByHand(TorchFunctionMode):
    """Looks at every sum into groups outside of PyG, whose layers have rules of their own."""

    def __init__(self, seen: list[tuple[int, dict[str, str | int]]], mean: bool) -> None:
        super().__init__()
        self._seen, self._mean = seen, mean
        self._sums: list[tuple[Tensor, Tensor, tuple[int, dict[str, str | int]]]] = []
        """What was handed on, the terms of every row, and what was noted."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RESCALES:
            for place, operand in enumerate(args[:2]):
                for one in self._sums:
                    if isinstance(operand, Tensor) and _same(operand, one[0]):
                        return self._rescaled(one, func, args, kwargs, place)
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.layout != torch.strided:
            return output
        with without_torch_function():
            counted = _terms(func, args, kwargs, output)
            if counted is None or _of_a_library(frame := _caller()):
                return output
            count = counted.clamp(min=1).to(output)
            if count.max() < GROUP or not grows(output.detach(), count):
                return output
            self._seen.append((int(count.max()), {} if self._mean else written_sum(frame)))
            if self._mean:
                # The caller of a function that writes into its operand may not use what it returns.
                output = output.div_(count.unsqueeze(-1)) if output is args[0] else output / count.unsqueeze(-1)
            self._sums.append((output, count, self._seen[-1]))
            return output

    def _rescaled(self, one: tuple[Tensor, Tensor, Any], func: Any, args: Any, kwargs: Any, place: int) -> Any:
        """A sum that its rows' own factors make a mean of, or a normalised one, is none that grows: it is left as it is."""
        handed, count, noted = one
        operand, in_place = args[place], func in _IN_PLACE and place == 0
        with without_torch_function():
            terms = count.unsqueeze(-1).expand_as(handed).reshape(operand.shape)
            if self._mean:
                whole = operand.mul_(terms) if in_place else operand * terms
                args = (*args[:place], whole, *args[place + 1 :])
            result = func(*args, **kwargs)
            if result.shape == operand.shape and grows(result.detach().reshape(handed.shape), count):
                if not self._mean:
                    return result
                return result.div_(terms) if in_place else result / terms
            self._seen.remove(noted)
            self._sums = [other for other in self._sums if other is not one]
            return result


def _same(one: Tensor, other: Tensor) -> bool:
    """True for a tensor and its views of another shape."""
    return one.layout == torch.strided and one.numel() == other.numel() and one.data_ptr() == other.data_ptr()


def _terms(func: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
    """(…, rows) how many rows of features each row of the output adds up; None where a function adds up none."""
    if func in GROUP_SUMS:
        done = group_sum(func, args, kwargs, output)
        if done is None or done.axis != 0 or output.dim() != 2 or not _of_features(done.values, output):
            return None
        return torch.bincount(done.groups, minlength=len(output))
    return terms(func, args, kwargs) if is_product(func) and _of_features(args[-1], output) else None


def _of_features(values: Tensor, output: Tensor) -> bool:
    exponential = values.grad_fn is not None and type(values.grad_fn).__name__.startswith("Exp")
    return output.dim() > 1 and output.shape[-1] >= _WIDTH and not exponential


def grows(output: Tensor, count: Tensor) -> bool:
    """True where ln(norm of a row) rises with ln(size of its group) by more than `GROWS`."""
    norm, count = output.double().norm(dim=-1).flatten(), count.flatten()
    kept = (norm > 0) & norm.isfinite()
    x, y = count[kept].double().log(), norm[kept].log()
    if len(x) < 2 or not bool((x > x.min()).any()):
        return False
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum()) > GROWS


def _caller() -> FrameType | None:
    """The frame that called the function: the first outside of torch, of what adds up for others, and of the modes that the call goes through."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and (
        _name(frame).startswith(_HANDED_ON) or frame.f_code.co_name == _ByHand.__torch_function__.__name__
    ):
        frame = frame.f_back
    return frame


def _of_a_library(frame: FrameType | None) -> bool:
    """True for PyG and for what looks at the run; the demonstration is a user of both."""
    name = "" if frame is None else _name(frame)
    return name.startswith(("torch_geometric.", "gnnstab.")) and name != "gnnstab.demo"


def _name(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
