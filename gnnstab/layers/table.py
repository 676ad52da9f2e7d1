"""The kinds of attention that gnnstab knows; asked about a module, a parameter or recorded facts."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from gnnstab.layers.agnn_conv import AGNNConvLayer
from gnnstab.layers.attentional_aggregation import AttentionalAggregationLayer
from gnnstab.layers.base import Layer
from gnnstab.layers.gat_conv import GATConvLayer
from gnnstab.layers.gate_conv import GATEConvLayer
from gnnstab.layers.gatv2_conv import GATv2ConvLayer
from gnnstab.layers.general_conv import GeneralConvLayer
from gnnstab.layers.generic import FAMILY, SCORE_MAPS, GenericLayer
from gnnstab.layers.han_conv import HANConvLayer
from gnnstab.layers.heat_conv import HEATConvLayer
from gnnstab.layers.hgt_conv import HGTConvLayer
from gnnstab.layers.hypergraph_conv import HypergraphConvLayer
from gnnstab.layers.multihead_attention import MultiheadAttentionLayer
from gnnstab.layers.point_transformer_conv import PointTransformerConvLayer
from gnnstab.layers.rgat_conv import RGATConvLayer
from gnnstab.layers.softmax_aggregation import SoftmaxAggregationLayer
from gnnstab.layers.supergat_conv import SuperGATConvLayer
from gnnstab.layers.transformer_conv import TransformerConvLayer

if TYPE_CHECKING:
    from torch import nn

    from gnnstab.records import LayerFacts

GENERIC = GenericLayer()
"""Stands for every layer that was seen by what it does."""

LAYERS: tuple[Layer, ...] = (
    TransformerConvLayer(),
    GATv2ConvLayer(),
    GATConvLayer(),
    SuperGATConvLayer(),
    GATEConvLayer(),
    HGTConvLayer(),
    HANConvLayer(),
    RGATConvLayer(),
    AGNNConvLayer(),
    HEATConvLayer(),
    PointTransformerConvLayer(),
    GeneralConvLayer(),
    HypergraphConvLayer(),
    SoftmaxAggregationLayer(),
    AttentionalAggregationLayer(),
    MultiheadAttentionLayer(),
)
"""One adapter per kind; the first that matches a module is taken."""


def layer_of(module: nn.Module) -> Layer | None:
    """The adapter of an attention layer, or None for every other module: the one definition of an attention layer."""
    return next((layer for layer in _by_name(type(module)) if layer.matches(module)), None)


_BY_NAME: WeakKeyDictionary[type, tuple[Layer, ...]] = WeakKeyDictionary()


def _by_name(kind: type) -> tuple[Layer, ...]:
    """The adapters whose class a class of modules extends, or bears the name of: none for most, which are asked about again and again."""
    if (known := _BY_NAME.get(kind)) is None:
        names = {one.__name__ for one in kind.__mro__}
        known = _BY_NAME[kind] = tuple(layer for layer in LAYERS if layer.kind in names)
    return known


def layer_named(kind: str | LayerFacts) -> Layer:
    """The adapter that recorded facts, or facts of this class name, come from.

    A subclass under a name of its own is taken for the first; what was read without an adapter stays without one.
    """
    if not isinstance(kind, str):
        if FAMILY in kind.options:
            known = next((one for one in LAYERS if getattr(one, FAMILY, None) == kind.options[FAMILY]), GENERIC)
            maps = kind.options.get(SCORE_MAPS)
            return GenericLayer(maps=str(maps)) if maps and known is GENERIC else known
        kind = kind.kind
    return next((layer for layer in LAYERS if kind and kind in (layer.kind, layer.stable)), LAYERS[0])


def kinds() -> str:
    """``TransformerConv``, or ``A, B and C``: the kinds that a file of weights is recovered to, for a sentence."""
    names = [layer.kind for layer in LAYERS if layer.essential]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plays(parameter: str, role: str) -> bool:
    """Whether a parameter, by the end of its name, is the weight of a part with this role in some kind of layer."""
    parts = {part for layer in LAYERS for part in layer.roles.get(role, ())}
    return any(f".{parameter}".endswith(f".{part}.weight") for part in parts)


def weights(facts: LayerFacts, role: str) -> tuple[str, ...]:
    """Full names of the weights of the parts with this role in one layer."""
    return tuple(f"{facts.name}.{part}.weight" for part in layer_named(facts).roles.get(role, ()))


def parts(kind: str | LayerFacts, *roles: str) -> str:
    """``lin_value and lin_skip``: what the parts with these roles are called in a layer of this class or with these facts."""
    layer, facts = layer_named(kind), None if isinstance(kind, str) else kind
    found = [
        part for role in roles for part in layer.roles.get(role, ()) if facts is None or layer.present(part, facts)
    ]
    return " and ".join(found)
