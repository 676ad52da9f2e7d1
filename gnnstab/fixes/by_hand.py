"""Fixes outside of what can be changed on a copy: in the data, in the code of forward, in what the optimizer is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix

if TYPE_CHECKING:
    from torch import nn


class ByHand(Fix):
    """A change that only its user can make; `change` prints it and `verify` says that it was not tested."""

    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = False

    where: ClassVar[str]
    """What has to be changed, in a few words."""

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Raises `FixError`: a tool that sees the model alone cannot make the change."""
        raise FixError(f"{self.name} is a change of {self.where}: make it by hand and diagnose again")
