"""Drop-in layers that PyTorch Geometric lacks, and the parts that `gnnstab.fixes` builds changed copies from."""

from gnnstab.nn.identity import IdentityPath as IdentityPath
from gnnstab.nn.stable_transformer_conv import StableTransformerConv as StableTransformerConv

__all__ = ["IdentityPath", "StableTransformerConv"]
