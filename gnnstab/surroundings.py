"""What the user's code finds around itself and may set: context variables, decimal numbers, warning filters, how tensors are printed."""

from __future__ import annotations

import decimal
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any

import numpy as np

_MISSING = object()


def surroundings() -> Callable[[], None]:
    """The call that puts back what is set by now.

    A context variable that has no default and is set in between for the first time keeps its value.
    """
    context, number, errors, filters = copy_context(), decimal.getcontext(), np.geterr(), list(warnings.filters)
    held, shown, settings, path, modules = number.copy(), _shown(), _settings(), list(sys.path), len(sys.modules)

    def put_back() -> None:
        if (present := _settings()) != settings:
            for value, now, put in zip(settings, present, _setters(), strict=False):
                if value != now:
                    put(*value)
        if sys.path != path and len(sys.modules) == modules:  # Else what was imported may have added to it for good.
            sys.path[:] = path
        if shown != _shown():
            sys.modules["torch"].set_printoptions(**shown)
        if list(warnings.filters) != filters:
            warnings.filters[:] = filters  # type: ignore[index]
            with warnings.catch_warnings():  # At its end what modules know of the filters is forgotten.
                pass
        _set_decimal(number, held)
        if np.geterr() != errors:
            np.seterr(**errors)
        for variable, value in copy_context().items():
            before = context.get(variable, _MISSING)
            before = _default(variable) if before is _MISSING else before
            if before is not value and before is not _MISSING:
                variable.set(before)

    return put_back


def _settings() -> tuple[tuple[Any, ...], ...]:
    """What the functions of `_setters` are given to set what holds by now."""
    own = gc.get_threshold(), (sys.getrecursionlimit(),), (gc.isenabled(),)
    torch = sys.modules.get("torch")
    if torch is None:
        return own
    cudnn = torch.backends.cudnn
    return (
        *own,
        (torch.get_default_dtype(),),
        (torch.get_num_threads(),),
        (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        (torch.get_float32_matmul_precision(),),
        (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        (_flushes_denormal(),),
        (cudnn.benchmark,),
        (cudnn.deterministic,),
    )


def _setters() -> Iterator[Callable[..., Any]]:
    """The functions that set the settings of the process; those of torch come last."""
    yield from (gc.set_threshold, sys.setrecursionlimit, lambda enabled: gc.enable() if enabled else gc.disable())
    torch = sys.modules["torch"]
    yield from (torch.set_default_dtype, torch.set_num_threads)
    yield lambda enabled, warn: torch.use_deterministic_algorithms(enabled, warn_only=warn)
    yield from (torch.set_float32_matmul_precision, torch.autograd.set_detect_anomaly, torch.set_flush_denormal)
    yield from (partial(setattr, torch.backends.cudnn, name) for name in ("benchmark", "deterministic"))


def _flushes_denormal() -> bool:
    """No function tells; NumPy's numbers go through the same unit."""
    return float(np.float32(1e-41) * np.float32(1)) == 0


def _shown() -> dict[str, Any]:
    if sys.modules.get("torch") is None:
        return {}
    from gnnstab.torch_private import print_options

    return print_options()


def _set_decimal(number: decimal.Context, held: decimal.Context) -> None:
    decimal.setcontext(number)
    for name in ("prec", "rounding", "Emin", "Emax", "capitals", "clamp"):
        setattr(number, name, getattr(held, name))
    number.flags.update(held.flags)
    number.traps.update(held.traps)


def _default(variable: ContextVar[Any]) -> Any:
    try:
        return Context().run(variable.get)
    except LookupError:
        return _MISSING
