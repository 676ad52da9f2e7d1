"""Forward hooks that change what a module returns: norm, clamp, root term."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData


class ClampOutput:
    """Forward hook: limits every entry to ±``limit``; the gradient beyond it is zero."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Clamp the output, the first of several, or that of every node type."""
        if isinstance(output, tuple):
            return (self(module, args, output[0]), *output[1:])
        if isinstance(output, dict):
            return {kind: self(module, args, one) for kind, one in output.items()}
        return output.clamp(-self.limit, self.limit)


class BatchVector:
    """Pre-hook of the whole model: remembers which graph each node belongs to, where the arguments tell."""

    def __init__(self) -> None:
        self.batch: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look for ``batch=`` or for a ``Data`` with a batch vector."""
        self.batch = kwargs.get("batch")
        for value in (*args, *kwargs.values()):
            if self.batch is None and isinstance(value, BaseData):
                self.batch = getattr(value, "batch", None)

    def forget(self) -> None:
        """Nothing is kept between passes."""
        self.batch = None


class NormOutput:
    """Forward hook: applies the module's own ``post_norm`` to its output, with the batch vector where known."""

    def __init__(self, vector: BatchVector) -> None:
        self.vector = vector

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Normalise the output, or the first of several."""
        if isinstance(output, tuple):
            return (self(module, args, output[0]), *output[1:])
        batch = self.vector.batch
        if batch is not None and batch.numel() == output.size(0):
            return module.post_norm(output, batch)  # type: ignore[operator]
        return module.post_norm(output)  # type: ignore[operator]


class SelfTerm:
    """Forward hook of an aggregation: normalises the sum (``sum_norm``) and adds ``root_term`` of the node's own features."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """The output with the terms that the module has."""
        norm, root = getattr(module, "sum_norm", None), getattr(module, "root_term", None)
        if norm is not None:
            output = norm(output)
        if root is not None:
            x = kwargs["x"] if "x" in kwargs else args[0]
            own = x[1] if isinstance(x, tuple) else x
            output = output + root(own.to(output.dtype))
        return output


class StandardiseInput(nn.Module):
    """(x − mean) / std per column, with the numbers kept as buffers; columns of whole numbers are left alone.

    Args:
        mean: (D,) subtracted.
        std: (D,) divided by.
        argument: Name or position of the model's argument, or name of an attribute of its ``Data``; None for ``data.x``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, argument: str | int | None) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.argument = argument

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (…, D)."""
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class StandardiseHook:
    """Pre-hook of the whole model that hands the features through its ``input_standardisation``."""

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Replace the features; the caller's own objects are left as they are."""
        standardise: StandardiseInput = model.input_standardisation  # type: ignore[assignment]
        where = standardise.argument
        if isinstance(where, str) and where in kwargs:
            return args, {**kwargs, where: standardise(kwargs[where])}
        if isinstance(where, int):
            return (*args[:where], standardise(args[where]), *args[where + 1 :]), kwargs
        changed = [_with_features(value, standardise) for value in args]
        return tuple(changed), {k: _with_features(v, standardise) for k, v in kwargs.items()}


def _with_features(value: Any, standardise: StandardiseInput) -> Any:
    if not isinstance(value, BaseData):
        return value
    data = copy.copy(value)
    name = standardise.argument if isinstance(standardise.argument, str) else "x"
    data[name] = standardise(value[name])
    return data


def column_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std of every column of (…, D); 0 and 1 where a column holds whole numbers only or does not vary."""
    flat = x.detach().reshape(-1, x.size(-1)).double()
    mean, std = flat.mean(0), flat.std(0, unbiased=False)
    keep = (flat == flat.round()).all(0) | (std == 0)
    mean, std = torch.where(keep, torch.zeros_like(mean), mean), torch.where(keep, torch.ones_like(std), std)
    return mean.to(x.dtype), std.to(x.dtype)
