"""Whether a value grew too large because of the scale of an input: the step again with that input standardised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import columns, is_target, standardised, value_columns
from gnnstab.probe.replaying.replica import NO_AUTOCAST, ForwardInputs
from gnnstab.stored import is_finite
from gnnstab.torch_private import DispatchMode, not_compiled

BAD_RMS = 10.0
"""RMS from which an input's scale is a suspect: standardised features have 1."""


def scale_to_blame(call: ForwardInputs, model: nn.Module, finite: Callable[[ForwardInputs], bool]) -> tuple[str, ...]:
    """Names of the inputs whose scale made the value: with them standardised, ``finite`` says yes.

    One alone when one is enough, all of them together when only that helps, none when nothing does.
    """
    suspects = badly_scaled(call, model)
    if not suspects or not finite(_standardised(call, suspects.values())):
        return ()
    for name, tensor in suspects.items():
        if len(suspects) > 1 and finite(_standardised(call, [tensor])):
            return (name,)
    return tuple(suspects)


class _WideMode(DispatchMode):
    """Has everything computed in a wider format that would be converted to, or made in, a narrower one."""

    def __init__(self, wide: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wide = wide

    @not_compiled
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``function``, with the wider format wherever a result in a narrower one is asked for."""
        given = dict(kwargs or {})
        if _is_narrow(given.get("dtype"), self._wide):
            given["dtype"] = self._wide
        return function(*(self._wide if _is_narrow(a, self._wide) else a for a in args), **given)


@contextmanager
def wider(wide: torch.dtype) -> Iterator[None]:
    """Within it, all floating numbers are computed in ``wide``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(max(before, wide, key=lambda dtype: dtype.itemsize))
    try:
        with _WideMode(wide):
            yield
    finally:
        torch.set_default_dtype(before)


def _is_narrow(dtype: Any, wide: torch.dtype) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize < wide.itemsize


def widened(call: ForwardInputs, wide: torch.dtype) -> ForwardInputs:
    """The call without autocast, its inputs in ``wide``."""
    return call.mapped(lambda t: t.to(wide) if _is_narrow(t.dtype, wide) else t)._replace(autocast=NO_AUTOCAST)


def badly_scaled(call: ForwardInputs, model: nn.Module) -> dict[str, Tensor]:
    """The floating inputs with a column of RMS above `BAD_RMS` by name, the largest first; ids, counts and masks are left out."""
    named = named_tensors(tuple(call.args), call.kwargs, model)
    features = {n: t for n, t in named.items() if is_finite(t) and bool(value_columns(t).any()) and not is_target(n)}
    sizes = {name: float(columns(t).square().mean(0).sqrt().max()) for name, t in features.items()}
    return {name: features[name] for name in sorted(sizes, key=lambda n: -sizes[n]) if sizes[name] > BAD_RMS}


def _standardised(call: ForwardInputs, tensors: Iterable[Tensor]) -> ForwardInputs:
    """The call with every column of these inputs at mean 0 and deviation 1."""
    chosen = {id(tensor) for tensor in tensors}
    return call.mapped(lambda tensor: standardised(tensor) if id(tensor) in chosen else tensor)
