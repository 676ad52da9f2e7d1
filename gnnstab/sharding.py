"""Models whose parameters lie in several processes, of which each holds a part (FSDP, tensor parallelism)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

WHY = "its parameters are spread over several processes (DTensor); no process sees them whole"

_WRAPPERS = ("FSDPModule", "FullyShardedDataParallel")
"""Names of classes whose forward waits for the other processes."""


def is_sharded(tensor: Tensor) -> bool:
    """True for a ``DTensor``, whose operations take no plain tensors and may wait for the other processes."""
    return type(tensor).__module__.startswith("torch.distributed.") and hasattr(tensor, "to_local")


def sharded(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of which this process holds a part."""
    return frozenset(name for name, parameter in model.named_parameters() if is_sharded(parameter))


def waits_for_others(value: object) -> bool:
    """True for a model whose forward, or that of a copy of it, gathers parameters from other processes."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.nn.Module):
        return False
    modules = list(value.modules())
    if any(base.__name__ in _WRAPPERS for kind in set(map(type, modules)) for base in kind.__mro__):
        return True
    return any(is_sharded(p) for m in modules for p in m._parameters.values() if p is not None)
