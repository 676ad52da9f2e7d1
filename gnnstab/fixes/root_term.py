"""The linear skip of every layer switched on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import editable_layers, edited_copy
from gnnstab.fixes.printing import constructor_calls
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import DEGREE_ISOLATED_SHARE

if TYPE_CHECKING:
    from torch import nn


class RootWeight(Fix):
    """``root_weight=True``: a node without incoming edges keeps its own features, and a path that trains."""

    name: ClassVar[str] = "root-weight"
    title: ClassVar[str] = "root_weight=True"
    causes: ClassVar[tuple[str, ...]] = ("isolated-nodes", "indistinguishable-nodes")
    signal: ClassVar[str] = DEGREE_ISOLATED_SHARE
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "one linear map per layer; training starts anew"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor with ``root_weight=True``."""
        bare = [layer for layer in layers if layer.attention and layer.get("root_weight") is False]
        return constructor_calls(bare, root_weight=True)

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Switch the skip of every layer on.

        Raises `FixError` when every layer has one.
        """
        with edited_copy(model) as copy:
            bare = [(m, kind) for _, m, kind in editable_layers(copy, "switch_skip_on") if not kind.has_skip(m)]
            if not bare:
                raise FixError("every layer has its root term (root_weight=True) already")
            for layer, kind in bare:
                kind.switch_skip_on(layer)
            return copy
