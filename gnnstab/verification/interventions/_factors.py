"""Suspects in the model's code: values that it multiplies by a constant, tried without the factor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.probe.batches.roles import LARGE
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.replaying.replica import Autocast, device_of, eager, on_device
from gnnstab.probe.statistics.numbers import rms
from gnnstab.records.vocabulary import LOSS_OVER_ZERO
from gnnstab.verification.interventions._measuring import Look
from gnnstab.verification.interventions._trial import Case, Edit, Trial

Product = tuple[float, tuple[int, ...]]
"""A factor, and the shape of what is multiplied by it."""

_PRODUCTS = frozenset(
    {torch.mul, torch.multiply, Tensor.mul, Tensor.mul_, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__}
)
_SOFTMAX = frozenset({torch.softmax, torch.exp, F.softmax, Tensor.softmax, Tensor.exp})
_BETWEEN = (
    "SubBackward",
    "MaskedFillBackward",
    "WhereBackward",
    "ViewBackward",
    "SqueezeBackward",
    "UnsqueezeBackward",
    "ToCopyBackward",
)
"""What may stand between scores and the exponential that is taken of them."""

_QUOTIENTS = frozenset({torch.div, torch.divide, Tensor.div, Tensor.div_, Tensor.divide, Tensor.__truediv__})


def unit_factors(case: Case, base: Look) -> Iterator[Trial]:
    """Factors written in the code that make values large, taken as 1: those on scores first, then those on weights and states, and on the batch."""
    if not case.suffers("attention.", "score.", "precision.", "output.", "input.", LOSS_OVER_ZERO, "gradient."):
        return
    seen = _Factors(case.model)
    try:
        with torch.enable_grad(), seen, Autocast.of(case.model, case.precision).context():
            args, kwargs = on_device(as_arguments(case.batch, case.model)[0], device_of(case.model))
            eager(case.model)(*args, **kwargs)
    except Exception as error:  # The look without any edit says why a stranger's forward fails.
        let_through(error)
        return
    finally:
        seen.close()
    for cause in ("attention-explosion", "unsuitable-init", "feature-scale"):
        found = {key: one for key, one in seen.found.items() if seen.cause(key) == cause}
        if found:
            factor, name, size, _, line = max(found.values(), key=lambda one: one[2])
            others = sum(seen.places[key] for key in found) - 1
            all_of = f", and at {others} other place{'' if others == 1 else 's'}," if others else ""
            yield Trial(
                "unit-factors", cause, f"leaving out the factor {factor:.3g} on {name}{all_of}",
                f"the code multiplies {name} by {factor:.3g}{line}{all_of} and makes numbers of RMS {size:.3g} of it",
                Edit(model=_without(frozenset(found))), deviates=True, place=name,
            )  # fmt: skip


def _without(products: frozenset[Product]) -> Any:
    @contextmanager
    def edited(model: nn.Module) -> Iterator[nn.Module]:
        with _Factors(model, products) as mode:
            yield model
        mode.close()

    return edited


class _Factors(TorchFunctionMode):
    """Looks at every product with a constant number that makes values large; those of ``without`` are left out.

    ``found``: product → factor, what it is put on where the most comes of it, RMS behind it, whether that can be trained, and
    where the code does it, `` (line 17 of model.py)``; ``places``: how often it was met.
    """

    def __init__(self, model: nn.Module, without: frozenset[Product] = frozenset()) -> None:
        super().__init__()
        self.found: dict[Product, tuple[float, str, float, bool, str]] = {}
        self.places: Counter[Product] = Counter()
        self._made: dict[Any, Product] = {}
        self._scores: set[Product] = set()
        self._without = without
        self._modules = Modules(model)
        self._names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self._kept: list[Tensor] = []
        self._handles = [m.register_forward_hook(self._named(name)) for name, m in hookable(model) if name]

    def cause(self, product: Product) -> str:
        """What a factor on scores, on weights and states, or on the batch is called."""
        if product in self._scores:
            return "attention-explosion"
        return "unsuitable-init" if self.found[product][3] else "feature-scale"

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _named(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not self._without:
                self._names.setdefault(output.data_ptr(), f"what {name} returns")
                self._kept.append(output)  # Its memory is nobody else's while it is known by it.

        return keep

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the function; look at it, or leave the factor out, if it is a product with a number."""
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and args and isinstance(args[0], Tensor):
            self._scored(args[0].grad_fn)
        if (func not in _PRODUCTS and func not in _QUOTIENTS) or len(args) < 2:
            return result
        value, factor = _parts(args, func in _QUOTIENTS)
        if value is None or not isinstance(result, Tensor) or result.shape != value.shape:
            return result
        product = (factor, tuple(value.shape))
        if product in self._without:
            return result / factor
        size = float(rms(result.detach()))
        if abs(factor) > 1 and size > LARGE and not self._without:
            name = self._names.get(value.data_ptr(), "values on the way")
            self.places[product] += 1
            self._made[result.grad_fn] = product
            if product not in self.found or size > self.found[product][2]:
                line = caller_place(self._modules, "model")[0].words
                self.found[product] = (factor, name, size, value.requires_grad, f" ({line})" if line else "")
        return result

    def _scored(self, node: Any) -> None:
        """Mark the product that scores are, as they are given to a softmax."""
        while node is not None and node not in self._made and type(node).__name__.startswith(_BETWEEN):
            node = node.next_functions[0][0]
        if node in self._made and node is not None:
            self._scores.add(self._made[node])


def _parts(args: Any, quotient: bool) -> tuple[Tensor | None, float]:
    """The tensor of real numbers and the constant that it is multiplied by."""
    one, other = args[:2] if isinstance(args[0], Tensor) and args[0].dim() else args[1::-1]
    if not isinstance(one, Tensor) or not one.is_floating_point() or not one.dim() or (quotient and one is not args[0]):
        return None, 1.0
    if isinstance(other, Tensor):
        if other.dim() or other.requires_grad:
            return None, 1.0
        other = float(other)
    if not isinstance(other, (int, float)) or isinstance(other, bool) or not other:
        return None, 1.0
    return one, 1.0 / other if quotient else float(other)
