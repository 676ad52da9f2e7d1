"""An active clamp removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import edited_copy, exchange
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import CLIP_SHARE

if TYPE_CHECKING:
    from torch import nn


class RemoveClamp(Fix):
    """Takes out modules that clamp: ``Hardtanh`` becomes the identity and ``ReLU6`` a ReLU.

    A ``clamp`` in the code of forward is out of reach and has to be taken out by hand. What makes the values grow is to be
    treated first; where the limit is meant, widen it until less than one entry in a hundred reaches it.
    """

    name: ClassVar[str] = "remove-clamp"
    title: ClassVar[str] = "no clamp between the layers"
    causes: ClassVar[tuple[str, ...]] = ("active-clamp",)
    signal: ClassVar[str] = CLIP_SHARE
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "values are unbounded again"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """What to take out of forward."""
        return "# forward: without .clamp(…), torch.clamp, Hardtanh or ReLU6 between the layers"

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the modules.

        Raises `FixError` when no module clamps.
        """
        from torch import nn as torch_nn

        with edited_copy(model) as copy:
            found = [(n, m) for n, m in copy.named_modules() if n and isinstance(m, torch_nn.Hardtanh)]
            if not found:
                raise FixError("no Hardtanh or ReLU6 module; take the clamp out of the code of forward by hand")
            for name, module in found:
                exchange(copy, name, torch_nn.ReLU() if isinstance(module, torch_nn.ReLU6) else torch_nn.Identity())
            return copy
