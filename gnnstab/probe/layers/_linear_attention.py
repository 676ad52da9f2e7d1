"""Recognises linear attention, q·(kᵀv) over q·(Σk), in a forward: it has no scores, and so is named and not judged."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.probe.layers.functions import DIVIDES, MIXES, PRODUCTS, SAME, TIMES, above_and_below


class _Product(NamedTuple):
    output: Tensor
    operands: tuple[Tensor, ...]
    twice: bool
    """True where an operand is a product itself, as kᵀv is in q·(kᵀv)."""

    inverse: bool = False


class LinearAttention:
    """Follows every matrix product of a forward to a quotient of two that share a factor, the query."""

    def __init__(self, wanted: bool = True) -> None:
        self.found = False
        self._wanted = wanted
        self._products: list[_Product] = []

    @property
    def follows(self) -> bool:
        """True while there is a product to follow."""
        return bool(self._products)

    def clear(self) -> None:
        """Let every tensor go that was followed."""
        self._products = []

    def look(self, func: Any, args: tuple[Any, ...], output: Any) -> None:
        """One call of one of torch's functions that has just returned."""
        if self.found or not self._wanted or not isinstance(output, Tensor):
            return
        if func in PRODUCTS or func is torch.einsum:
            self._product(_operands(args), output)
        elif func in DIVIDES:
            self._divide(*above_and_below(func, args), output)
        elif func in TIMES:
            for one, other in (args[:2], args[1::-1]):
                inverse, product = self._of(one), self._of(other)
                self.found |= inverse is not None and inverse.inverse and _share(product, inverse)
            self._keep(args, output)
        elif func in SAME or func in MIXES:
            self._keep(args, output)

    def _of(self, tensor: Any) -> _Product | None:
        return next((p for p in self._products if p.output is tensor), None) if isinstance(tensor, Tensor) else None

    def _product(self, operands: tuple[Tensor, ...], output: Tensor) -> None:
        inner = [self._of(one) for one in operands]
        if any(one is not None and one.inverse and _overlap(one.operands, operands) for one in inner):
            self.found = any(one is not None and not one.inverse for one in inner)
        self._products.append(_Product(output, operands, any(one is not None for one in inner)))

    def _divide(self, above: Any, below: Any, output: Tensor) -> None:
        product, divisor = self._of(above), self._of(below)
        if divisor is None:
            self._keep((above,), output)
        elif product is None:
            self._products.append(_Product(output, divisor.operands, divisor.twice, inverse=True))
        else:
            self.found = _share(product, divisor)

    def _keep(self, args: tuple[Any, ...], output: Tensor) -> None:
        product = next((p for one in args[:2] if (p := self._of(one)) is not None), None)
        if product is not None:
            self._products.append(product._replace(output=output))


def _operands(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    flat = (one for arg in args for one in (arg if isinstance(arg, (tuple, list)) else (arg,)))
    return tuple(one for one in flat if isinstance(one, Tensor))


def _overlap(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return any(one is other for one in first for other in second)


def _share(above: _Product | None, below: _Product) -> bool:
    """True for q·(kᵀv) above q·(Σk)."""
    return (
        above is not None
        and above.output is not below.output
        and above.twice
        and _overlap(above.operands, below.operands)
    )
