"""What a fix is: what it addresses, the exact change to print, and how to apply it to a copy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.model_structure import edited_copy
from gnnstab.fixes.printing import with_narrow_comments
from gnnstab.records import LayerFacts, Signals

if TYPE_CHECKING:
    from torch import nn

NOTHING_MEASURED = Signals("model", ())
"""What a change is printed from where nobody has measured anything."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A range of finite numbers."""

    low: float = -math.inf
    high: float = math.inf
    low_in: bool = False
    """True when ``low`` itself is allowed."""

    high_in: bool = False
    """The same of ``high``."""

    def check(self, name: str, value: Any) -> None:
        """Raise `FixError`, which begins with ``name``, for what is no number, not finite or outside."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise FixError(f"{name}={value!r} is no number") from None
        above = number > self.low or (self.low_in and number == self.low)
        below = number < self.high or (self.high_in and number == self.high)
        if not (math.isfinite(number) and above and below):
            raise FixError(f"{name}={number:g} {self._said}")

    @property
    def _said(self) -> str:
        if self.high < math.inf:
            return f"must lie in {'[' if self.low_in else '('}{self.low:g}, {self.high:g}{']' if self.high_in else ')'}"
        return "must be positive and finite" if self.low == 0 else "must be finite"


POSITIVE = Limits(0.0)
FINITE = Limits()


@dataclass(frozen=True, slots=True)
class Seen:
    """What a diagnosis has seen, as far as it decides which fixes are offered."""

    codes: frozenset[str]
    """Rules that fired."""

    roots: frozenset[str]
    """Root causes."""

    signals: Signals


class Fix:
    """One change to a model, its input or its training; its docstring says what it does, when it helps, and its options.

    A subclass has a `code` or writes `_lines`, and `_edit` where a copy of the model can be changed. Files in this room
    import torch inside `_edit` only, so that a report can print the change without torch.
    """

    name: ClassVar[str]
    """Kebab case, e.g. ``residual``."""

    title: ClassVar[str]
    """A few words for reports."""

    causes: ClassVar[tuple[str, ...]] = ()
    """Causes that it addresses, best first: a cause is offered the fixes that name it, those that name it first before the others."""

    signal: ClassVar[str]
    """The signal that should move when it works."""

    cost: ClassVar[str] = "none"
    """What it costs in time, memory or accuracy, in a few words."""

    code: ClassVar[str] = ""
    """The change as code, where it is the same for every model."""

    unless: ClassVar[str] = ""
    """Code of a rule that sees the very opposite of what the fix is for: where it has fired, the fix is not offered."""

    only_with: ClassVar[str] = ""
    """Code of a rule without which it is not offered."""

    said: ClassVar[str] = ""
    """What is known about it wherever it is recommended."""

    options: ClassVar[tuple[str, ...]] = ()
    """Names of the options that a caller may set; any other is a `FixError`."""

    limits: ClassVar[Mapping[str, Limits]] = {}
    """Options that are numbers → the range that they must lie in."""

    edit: ClassVar[str] = ""
    """What it does to a layer, where not every kind can be edited so: see `gnnstab.layers.Layer.applies`."""

    keeps_function: ClassVar[bool] = False
    """True when the trained weights keep their meaning (a setting or a weight edit): judged on the current weights."""

    shows_in_training: ClassVar[bool] = False
    """True when the network computes the same until it is trained: judged on paired fresh twins, after a short training."""

    costs_no_time: ClassVar[bool] = False
    """True when a step computes the same operations with it as without."""

    needs_fresh_weights: ClassVar[bool] = False
    """True when trained weights are useless after it: judged on paired fresh twins."""

    @property
    def on_fresh_weights(self) -> bool:
        """True when it is judged on fresh twins, whatever the weights of the model have come to."""
        return self.needs_fresh_weights or self.shows_in_training

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The exact change as code for these layers, with the user's own arguments."""
        lines = self._lines([_for_code(layer) for layer in layers], signals or NOTHING_MEASURED, options)
        return with_narrow_comments(lines)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """A changed deep copy; the model itself is untouched. New parameters are drawn from the option ``seed`` (0).

        Raises `FixError` when the model offers no place for the change.
        """
        with edited_copy(model, int(options.get("seed", 0))) as copy:
            self._edit(copy, options)
            return copy

    def helps(self, signals: Signals, **options: Any) -> bool:
        """False where the change would leave this model as it is; such a fix is not offered."""
        return True

    def training_options(self, **options: Any) -> Mapping[str, Any]:
        """What the fix changes about training rather than the model: ``lr``, ``eps``, ``clip`` or ``clip_percentile``."""
        return {}

    def _lines(self, layers: Sequence[LayerFacts], signals: Signals, options: dict[str, Any]) -> str:
        """The code to print."""
        return self.code

    def _edit(self, copy: nn.Module, options: dict[str, Any]) -> None:
        """Change the copy in place; a fix of the training alone leaves it as it is."""


def _for_code(layer: LayerFacts) -> LayerFacts:
    """The facts with a name that no comment ends at, and a class and an activation that are names: a trace may hold any text."""
    activation = layer.activation
    if activation and not all(part.isidentifier() for part in activation.split(".")):
        activation = None
    kind = re.sub(r"\W", "_", layer.kind)
    return replace(layer, name=" ".join(layer.name.splitlines()), kind=kind, activation=activation)


def attention_in(layers: Sequence[LayerFacts]) -> list[LayerFacts]:
    """The attention layers among them."""
    return [layer for layer in layers if layer.attention]


def positive(options: Mapping[str, Any], key: str, default: float) -> float:
    """An option that must be a positive number."""
    value = options.get(key, default)
    POSITIVE.check(key, value)
    return float(value)
