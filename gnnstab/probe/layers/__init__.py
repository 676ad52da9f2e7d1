"""How a layer is recorded: attention layers by their adapter in `gnnstab.layers`, every other MessagePassing from outside."""

from gnnstab.probe.layers.attention import AttentionRecorder as AttentionRecorder
from gnnstab.probe.layers.edge_softmax import DenseSoftmaxRecorder as DenseSoftmaxRecorder
from gnnstab.probe.layers.edge_softmax import EdgeSoftmaxRecorder as EdgeSoftmaxRecorder
from gnnstab.probe.layers.multihead import MultiheadRecorder as MultiheadRecorder
from gnnstab.probe.layers.other_layers import OtherLayerRecorder as OtherLayerRecorder
