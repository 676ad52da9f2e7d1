"""Fixes that change how a model is trained and leave the model alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import duplicate

if TYPE_CHECKING:
    from torch import nn


class TrainingFix(Fix):
    """A change of the optimizer or the loop; `training_options` carries it."""

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """A copy without any change: the change is in `training_options`."""
        return duplicate(model)


def positive(options: dict[str, Any], key: str, default: float) -> float:
    """An option that must be a positive number."""
    value = float(options.get(key, default))
    if not value > 0:
        raise FixError(f"{key}={value} must be positive")
    return value
