"""Attention of a class that nobody described: scores are seen where softmax receives them, formulas are not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.layers.base import Layer
from gnnstab.layers.pyg_layer import both, first
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILY = "family"
"""Option of `LayerFacts` of a layer that is read by this adapter: where its softmax stands."""

SCORE_MAPS = "score_maps"
"""Option of `LayerFacts`, by a comma: parts of such a layer that were seen to serve its scores alone."""

_HEADS = ("heads", "num_heads", "n_heads", "nhead", "n_head")


MULTIHEAD = "multihead"
"""The family of torch's own `nn.MultiheadAttention`."""


class GenericLayer(Layer):
    """Any layer whose softmax is over edges, or over the keys of a dense matrix of scores.

    By itself it is in no table: what a file holds tells nothing about it, and no weight of it can be edited.
    """

    kind = "attention of another class"
    attributes = ()

    def __init__(self, family: str = "", softmax_in: tuple[str, ...] = (), maps: str = "") -> None:
        self.family = family
        self.softmax_in = softmax_in  # type: ignore[misc]  # differs from class to class
        if maps:
            self.roles = {"score": tuple(maps.split(","))}  # type: ignore[misc]

    def matches(self, module: nn.Module) -> bool:
        """False: the probe decides by what a layer does."""
        return False

    def applies(self, edit: str) -> bool:
        """A layer of somebody's own may well take a dropout."""
        return edit == "dropout" or super().applies(edit)

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """What attributes of the customary names show."""
        layer: Any = module
        heads = next((h for key in _HEADS if isinstance(h := getattr(layer, key, None), int)), None)
        width, out = (first(layer, names) for names in (("in_channels", "embed_dim"), ("out_channels", "head_dim")))
        aggregation = getattr(layer, "aggr", None)
        return LayerFacts(
            name=name,
            kind=type(layer).__name__,
            position=position,
            attention=True,
            in_channels=both(width),
            out_channels=out if isinstance(out, int) else None,
            heads=heads,
            dropout=_dropout(layer),
            aggregation=aggregation if isinstance(aggregation, str) else None,
            options={FAMILY: self.family},
        )

    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sources are not known: this raises `FixError`."""
        raise self._inapplicable("weights whose use is not known")

    def positional(self, facts: LayerFacts) -> list[str]:
        """How the constructor is called nobody knows."""
        return ["..."]

    def scale_lines(self, owner: str, facts: LayerFacts | None, factors: Sequence[float] | None) -> list[str]:
        """What to do by hand: which weights make the scores is not known."""
        shown = ", ".join(f"{factor:.4g} in head {head}" for head, factor in enumerate(factors or ()) if factor < 1.0)
        return [f"# in the code of {owner}: multiply the scores before the softmax by {shown}"] if shown else []


def _dropout(layer: Any) -> float | None:
    """Of a number or an `nn.Dropout` under the name ``dropout``."""
    found = getattr(layer, "dropout", None)
    found = getattr(found, "p", found)
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None
