"""Whether a value grew too large because of the scale of an input: the step again with that input standardised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.operations._naming import is_finite
from gnnstab.probe.replaying.replica import NO_AUTOCAST, ForwardInputs
from gnnstab.torch_private import TorchDispatchMode

BAD_RMS = 10.0
"""RMS from which an input's scale is a suspect: standardised features have 1."""

_TARGETS = ("y", "target", "targets", "label", "labels", "train_mask", "val_mask", "test_mask")


def scale_to_blame(call: ForwardInputs, model: nn.Module, finite: Callable[[ForwardInputs], bool]) -> tuple[str, ...]:
    """Names of the inputs whose scale made the value: with them standardised, ``finite`` says yes.

    One alone when one is enough, all of them together when only that helps, none when nothing does.
    """
    suspects = badly_scaled(call, model)
    if not suspects or not finite(standardised(call, suspects.values())):
        return ()
    for name, tensor in suspects.items():
        if len(suspects) > 1 and finite(standardised(call, [tensor])):
            return (name,)
    return tuple(suspects)


class _WideMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Has everything computed in a wider format that would be converted to, or made in, a narrower one."""

    def __init__(self, wide: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._wide = wide

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
    features = {n: t for n, t in named.items() if is_measurement(t) and n.rpartition(".")[2] not in _TARGETS}
    sizes = {name: _rms(tensor) for name, tensor in features.items()}
    return {name: features[name] for name in sorted(sizes, key=lambda n: -sizes[n]) if sizes[name] > BAD_RMS}


def is_measurement(tensor: Tensor) -> bool:
    """True for floating numbers that are no ids, counts, masks or one-hot columns: those are whole numbers."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or not is_finite(tensor):
        return False
    return not bool((tensor == tensor.round()).all())


def standardised(call: ForwardInputs, tensors: Iterable[Tensor]) -> ForwardInputs:
    """The call with every column of these inputs at mean 0 and deviation 1."""
    chosen = {id(tensor) for tensor in tensors}

    def change(tensor: Tensor) -> Tensor:
        if id(tensor) not in chosen:
            return tensor
        deviation = tensor.std(0, unbiased=False, keepdim=True)
        # A constant column is scaled, not removed.
        deviation = torch.where(deviation > 1e-6 * tensor.abs().amax(0, keepdim=True), deviation, tensor.abs().amax())
        return (tensor - tensor.mean(0, keepdim=True)) / deviation.clamp(min=1e-12)

    return call.mapped(change)


def _rms(tensor: Tensor) -> float:
    """Largest RMS of a column."""
    columns = tensor.reshape(len(tensor), -1).double() if tensor.dim() else tensor.reshape(1, 1).double()
    return float(columns.square().mean(0).sqrt().max())
