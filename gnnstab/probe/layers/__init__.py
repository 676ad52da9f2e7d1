"""How a layer is recorded: attention layers by their adapter in `gnnstab.layers`, every other MessagePassing from outside."""

from gnnstab.probe.layers.attention import AttentionWatch as AttentionWatch
from gnnstab.probe.layers.fallback import FallbackWatch as FallbackWatch
from gnnstab.probe.layers.generic import DenseWatch as DenseWatch
from gnnstab.probe.layers.generic import EdgeWatch as EdgeWatch
from gnnstab.probe.layers.multihead import MultiheadWatch as MultiheadWatch
