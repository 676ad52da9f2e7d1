"""Sines and cosines whose arguments spread over very many periods, and arguments that spread over a part of one on a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.errors import let_through
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.optimizer._suspects import Suspect, listed, unchanged

MANY = 5 * 2 * math.pi
"""Standard deviation of the arguments, in their slowest column, from which on they spread over very many periods: some 17 where they are uniform."""

_FEWEST = 8
"""Arguments of one column, fewer of which say nothing."""

_WAVES = frozenset({torch.cos, Tensor.cos, torch.sin, Tensor.sin})


def many_periods(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The sines and cosines of one forward of ``model``, a copy, that have no slow column; names are those of the tensors of the batch that make their arguments."""
    look = _Waves(Modules(model))
    with look:
        forward()
    if not look.periods:
        return
    names = _made_of(model, forward)
    line = f" ({look.line})" if look.line else ""
    yield Suspect(
        "feature-scale", names, "spreading the arguments over a part of one period",
        f"the arguments of the sines and cosines{' of ' * bool(names)}{listed(names)}{line} have a standard deviation of {look.periods:.3g} periods even in the "
        "slowest column, so that values next to each other are as far apart as any",
        unchanged, _Waves(),
    )  # fmt: skip


class _Waves(TorchFunctionMode):
    """Within the block: how far the arguments of sines and cosines scatter, in which line of ``modules``; without them those that scatter far are brought to a standard deviation of 1."""

    def __init__(self, modules: Modules | None = None) -> None:
        super().__init__()
        self.periods, self.line, self._modules = 0.0, "", modules
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        whole = args[0] if args and func in _WAVES else None
        if not isinstance(whole, Tensor) or not whole.is_floating_point():
            return func(*args, **(kwargs or {}))
        table = _columns(whole.detach())
        slowest = float(table.std(0).min()) if len(table) >= _FEWEST and table.isfinite().all() else 0.0
        if slowest < MANY:
            return func(*args, **(kwargs or {}))
        if self._modules is None:
            centre = table.mean(0).view(-1)
            # Apart in phase, so that no two columns are even around the same value.
            phase = torch.linspace(0, math.pi, len(centre) + 1, device=whole.device)[1:].to(whole)
            size = float((table - centre).square().mean().sqrt())
            return func((whole - centre.to(whole)) / size + phase, **(kwargs or {}))
        if not self.periods:
            self.line = caller_place(self._modules, "model")[0].words
        self.periods = max(self.periods, slowest / (2 * math.pi))
        self.found.append(whole)
        return func(*args, **(kwargs or {}))


def _columns(angles: Tensor) -> Tensor:
    """(rows, columns) in double; one column of a tensor of one axis."""
    return (angles.reshape(-1, angles.shape[-1]) if angles.dim() > 1 else angles.reshape(-1, 1)).double()


def _made_of(model: nn.Module, forward: Callable[[], Any]) -> tuple[str, ...]:
    """Names of those tensors of the batch that the arguments change with; none where the forward takes no inputs with a gradient."""
    lent = dict[str, Tensor]()

    def lend(module: nn.Module, args: Any, kwargs: Any) -> None:
        for name, tensor in named_tensors(args, kwargs, model=module).items():
            if tensor.is_floating_point() and not tensor.requires_grad:
                lent[name] = tensor.requires_grad_()

    look, handle = _Waves(Modules(model)), model.register_forward_pre_hook(lend, with_kwargs=True)
    try:
        with look:
            forward()
        angles = [angle.sum() for angle in look.found if angle.requires_grad]
        slopes = torch.autograd.grad(angles, list(lent.values()), allow_unused=True) if angles and lent else ()
        return (
            tuple(name for name, slope in zip(lent, slopes, strict=True) if slope is not None and slope.any())
            if slopes
            else ()
        )
    except Exception as error:  # A forward that writes into its inputs, or hands them to NumPy.
        let_through(error)
        return ()
    finally:
        handle.remove()
        for tensor in lent.values():
            tensor.requires_grad_(False)
