"""How a layer is recorded: attention layers by their adapter in `gnnstab.layers`, every other MessagePassing from outside."""

from gnnstab.probe.layers.attention import AttentionWatch as AttentionWatch
from gnnstab.probe.layers.fallback import FallbackWatch as FallbackWatch
