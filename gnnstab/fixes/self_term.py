"""What the fixes of a sum aggregation share: a root term and a norm on the module's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError
from gnnstab.fixes.model_structure import add_part

if TYPE_CHECKING:
    from torch import nn


def add_self_term(model: nn.Module, modules: list[nn.Module], batch: Any, *, norm: bool, root: bool) -> None:
    """Give each module, in place, a ``sum_norm`` (LayerNorm) and a ``root_term`` (linear in the node's own features).

    The widths are read off one forward pass on ``batch``. Raises `FixError` when there is no batch and the modules
    have no ``in_channels`` and ``out_channels``, or when a module is not called with node features.
    """
    from torch import nn as torch_nn

    from gnnstab.nn.output_hooks import SelfTerm

    widths = [_declared(module) for module in modules]
    if any(w is None for w in widths):
        widths = list(_observed(model, modules, batch))
    for module, width in zip(modules, widths, strict=True):
        assert width is not None
        if norm:
            add_part(module, "sum_norm", torch_nn.LayerNorm(width[1]))
        if root:
            add_part(module, "root_term", torch_nn.Linear(width[0], width[1]))
        module.register_forward_hook(SelfTerm(), with_kwargs=True)


def _declared(module: Any) -> tuple[int, int] | None:
    wide = getattr(module, "in_channels", None)
    if isinstance(wide, (tuple, list)):
        wide = wide[-1]
    out = getattr(module, "out_channels", None)
    return (wide, out) if isinstance(wide, int) and isinstance(out, int) and wide > 0 and out > 0 else None


def _observed(model: nn.Module, modules: list[nn.Module], batch: Any) -> list[tuple[int, int] | None]:
    """Widths (own features, output) of the modules during one forward pass in eval mode."""
    import torch

    from gnnstab.probe.batches.arguments import as_arguments

    if batch is None:
        raise FixError("the widths of the aggregation are only seen in a forward pass: pass batch=")
    seen: dict[int, tuple[int, int]] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = kwargs["x"] if "x" in kwargs else args[0] if args else None
        own = x[1] if isinstance(x, tuple) else x
        if isinstance(own, torch.Tensor) and isinstance(output, torch.Tensor):
            seen[id(module)] = (own.size(-1), output.size(-1))

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        args, kwargs = as_arguments(batch, model)[0]
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if len(seen) < len(modules):
        raise FixError("a module that sums messages was not called with node features as its first argument or as x=")
    return [seen[id(module)] for module in modules]
