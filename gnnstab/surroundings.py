"""What the user's code finds around itself and may set: context variables, decimal numbers, warning filters, how tensors are printed."""

from __future__ import annotations

import decimal
import sys
import warnings
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any

import numpy as np

_MISSING = object()


def surroundings() -> Callable[[], None]:
    """The call that puts back what is set by now.

    A context variable that has no default and is set in between for the first time keeps its value.
    """
    context, number, errors, filters = copy_context(), decimal.getcontext(), np.geterr(), list(warnings.filters)
    held, shown = number.copy(), _shown()

    def put_back() -> None:
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
