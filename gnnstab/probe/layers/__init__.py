"""One adapter per layer family; the first class that matches is taken, the fallback matches every MessagePassing."""

from torch_geometric.nn import MessagePassing, TransformerConv

from gnnstab.probe.layers.base import Call as Call
from gnnstab.probe.layers.fallback import FallbackWatch
from gnnstab.probe.layers.transformer_conv import TransformerConvWatch
from gnnstab.probe.watch import Watch

ADAPTERS: tuple[tuple[type, type[Watch]], ...] = (
    (TransformerConv, TransformerConvWatch),
    (MessagePassing, FallbackWatch),
)
"""Layer class → watch."""
