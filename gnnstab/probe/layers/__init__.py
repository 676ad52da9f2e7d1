"""How a layer is recorded: attention layers by their adapter in `gnnstab.layers`, every other MessagePassing from outside."""

from gnnstab.probe.layers.attention import AttentionWatch as AttentionWatch
from gnnstab.probe.layers.edge_softmax import DenseWatch as DenseWatch
from gnnstab.probe.layers.edge_softmax import EdgeWatch as EdgeWatch
from gnnstab.probe.layers.multihead import MultiheadWatch as MultiheadWatch
from gnnstab.probe.layers.other_layers import FallbackWatch as FallbackWatch
