"""Parameters and buffers without numbers: of layers that have not been given their shapes yet, and on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def unwritten(model: nn.Module) -> frozenset[str]:
    """Names of all parameters and buffers of modules of which one is still lazy, as for a node type that no batch has had so far, and of what lies on meta.

    What such a module holds beside it, a bias, is memory that nobody has written: there are no numbers to judge.
    """
    from torch.nn.parameter import is_lazy

    own = ((path, {**module._parameters, **module._buffers}) for path, module in model.named_modules())
    lazy = {
        f"{path}.{name}".lstrip(".") for path, tensors in own if any(map(is_lazy, tensors.values())) for name in tensors
    }
    return frozenset(lazy.union(on_meta(model)))


def on_meta(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that have a shape and no numbers, as those of a part that was not loaded."""
    return [name for named in (model.named_parameters(), model.named_buffers()) for name, t in named if t.is_meta]
