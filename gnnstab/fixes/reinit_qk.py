"""Queries and keys drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.fixes.base import Fix
from gnnstab.fixes.reinitialising import reinit_lines, reinitialised
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY

if TYPE_CHECKING:
    from torch import nn


class ReinitQK(Fix):
    """Initialises the query and key maps anew and leaves everything else as it is.

    For attention that large weights saturate although query and key agree no more than independent ones do: nothing
    learned is lost, and scores start small again. Scaling such weights down cures the scores and leaves one map much larger
    than the other, which then trains badly. Where training has made the attention sharp use ``qk-clip`` instead.
    Options: ``only`` (names of layers; all), ``seed``.
    """

    name: ClassVar[str] = "reinit-qk"
    title: ClassVar[str] = "queries and keys drawn anew"
    causes: ClassVar[tuple[str, ...]] = ("attention-explosion",)
    signal: ClassVar[str] = ATTENTION_ENTROPY
    edit: ClassVar[str] = "reinitialise"
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "none; what the attention had learned is lost"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The calls to make once."""
        return reinit_lines(layers, "score")

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Draw the maps anew."""
        return reinitialised(model, "score", options)
