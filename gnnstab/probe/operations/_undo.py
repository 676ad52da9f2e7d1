"""Whether a value grew too large because of the scale of an input: the step again with that input standardised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data.data import BaseData

from gnnstab.probe.operations._call import Call
from gnnstab.probe.operations._naming import is_finite
from gnnstab.probe.replaying.replica import copied
from gnnstab.torch_private import TorchDispatchMode

BAD_RMS = 10.0
"""RMS from which an input's scale is a suspect: standardised features have 1."""

_TARGETS = ("y", "target", "targets", "label", "labels", "train_mask", "val_mask", "test_mask")


def scale_to_blame(call: Call, finite: Callable[[Call], bool]) -> tuple[str, ...]:
    """Names of the inputs whose scale made the value: with them standardised, ``finite`` says yes.

    One alone when one is enough, all of them together when only that helps, none when nothing does.
    """
    suspects = sorted(badly_scaled(call), key=lambda name: -_rms_of(call, name))
    if not suspects or not finite(standardised(call, suspects)):
        return ()
    for name in suspects:
        if len(suspects) > 1 and finite(standardised(call, [name])):
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


def widened(call: Call, wide: torch.dtype) -> Call:
    """The call without autocast, its inputs in ``wide``."""
    return _walk(
        call._replace(args=copied(tuple(call.args)), kwargs=copied(dict(call.kwargs)), autocast=None),
        lambda path, tensor: tensor.to(wide) if _is_narrow(tensor.dtype, wide) else tensor,
    )


def badly_scaled(call: Call) -> list[str]:
    """Paths of the floating inputs with a column of RMS above `BAD_RMS`; ids, counts and masks are left out."""
    found: list[str] = []

    def look(path: str, tensor: Tensor) -> Tensor:
        if is_measurement(tensor) and path.rpartition(".")[2] not in _TARGETS and _rms(tensor) > BAD_RMS:
            found.append(path)
        return tensor

    _walk(call, look)
    return found


def is_measurement(tensor: Tensor) -> bool:
    """True for floating numbers that are no ids, counts, masks or one-hot columns: those are whole numbers."""
    if not tensor.is_floating_point() or tensor.numel() < 2 or not is_finite(tensor):
        return False
    return not bool((tensor == tensor.round()).all())


def standardised(call: Call, names: list[str]) -> Call:
    """The call with every column of these inputs at mean 0 and deviation 1."""

    def change(path: str, tensor: Tensor) -> Tensor:
        if path not in names:
            return tensor
        deviation = tensor.std(0, unbiased=False, keepdim=True)
        # A constant column is scaled, not removed.
        deviation = torch.where(deviation > 1e-6 * tensor.abs().amax(0, keepdim=True), deviation, tensor.abs().amax())
        return (tensor - tensor.mean(0, keepdim=True)) / deviation.clamp(min=1e-12)

    return _walk(call._replace(args=copied(tuple(call.args)), kwargs=copied(dict(call.kwargs))), change)


def _rms(tensor: Tensor) -> float:
    """Largest RMS of a column."""
    columns = tensor.reshape(len(tensor), -1).double() if tensor.dim() else tensor.reshape(1, 1).double()
    return float(columns.square().mean(0).sqrt().max())


def _rms_of(call: Call, name: str) -> float:
    sizes: list[float] = []

    def look(path: str, tensor: Tensor) -> Tensor:
        if path == name:
            sizes.append(_rms(tensor))
        return tensor

    _walk(call, look)
    return max(sizes, default=0.0)


def _walk(call: Call, change: Callable[[str, Tensor], Tensor]) -> Call:
    alone = len(call.args) == 1 and not call.kwargs and not isinstance(call.args[0], (Tensor, tuple, list))
    args = tuple(_changed("" if alone else f"argument {i}", value, change) for i, value in enumerate(call.args))
    return call._replace(args=args, kwargs={k: _changed(str(k), v, change) for k, v in call.kwargs.items()})


def _changed(path: str, value: Any, change: Callable[[str, Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(path, value)
    if isinstance(value, BaseData):
        value = value.clone()
        for store in value.stores:
            key = getattr(store, "_key", None)
            prefix = path if key is None else _joined(path, str(key))
            for name, item in list(store.items()):
                store[name] = _changed(_joined(prefix, name), item, change)
        return value
    if isinstance(value, Mapping):
        return {k: _changed(_joined(path, str(k)), v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_changed(_joined(path, str(i)), v, change) for i, v in enumerate(value))
    return value


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
