"""A cap on the attention scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.stable_conv import exchange_lines, exchanged
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import ATTENTION_ENTROPY

if TYPE_CHECKING:
    from torch import nn


class ScoreCap(Fix):
    """Limits the scores of every target to ±τ around their mean, τ = 3·√(2 ln d) with its in-degree d.

    Caps of 50 or 100, as large language models use them, do nothing on graphs: with ten neighbours attention is one-hot
    long before. Options: ``cap`` (3.0, in units of √(2 ln d)), ``by_degree`` (True; False: ``cap`` in logits),
    ``shape`` (``soft``, or ``hard`` for clipping), ``only`` (names of layers; all).
    """

    name: ClassVar[str] = "score-cap"
    title: ClassVar[str] = "degree-aware cap on the attention scores"
    causes: ClassVar[tuple[str, ...]] = ("attention-explosion",)
    signal: ClassVar[str] = ATTENTION_ENTROPY
    edit: ClassVar[str] = "stable"
    keeps_function: ClassVar[bool] = True
    needs_fresh_weights: ClassVar[bool] = False
    cost: ClassVar[str] = "one mean per target and a tanh per score; sharp attention becomes impossible"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The layer of `gnnstab.nn` with ``score_cap=``."""
        return exchange_lines(layers, **_arguments(options))

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the layers."""
        return exchanged(model, options.get("only"), **_arguments(options))


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    cap = float(options.get("cap", 3.0))
    if not cap > 0:
        raise FixError(f"cap={cap} must be positive; 3.0 is a good start")
    arguments: dict[str, Any] = {"score_cap": cap}
    if not options.get("by_degree", True):
        arguments["cap_by_degree"] = False
    if options.get("shape", "soft") != "soft":
        arguments["cap_shape"] = options["shape"]
    return arguments
