"""How a layer is recorded: attention layers by their adapter in `gnnstab.layers`, every other MessagePassing from outside."""

from gnnstab.probe.layers._attention import AttentionRecorder as AttentionRecorder
from gnnstab.probe.layers._edge_softmax import DenseSoftmaxRecorder as DenseSoftmaxRecorder
from gnnstab.probe.layers._edge_softmax import EdgeSoftmaxRecorder as EdgeSoftmaxRecorder
from gnnstab.probe.layers._multihead import MultiheadRecorder as MultiheadRecorder
from gnnstab.probe.layers._multihead import multihead_attention as multihead_attention
from gnnstab.probe.layers._multihead import multihead_scores as multihead_scores
from gnnstab.probe.layers._other_layers import OtherLayerRecorder as OtherLayerRecorder
