"""A loss as users write it: of the output and the batch, or of the output alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from gnnstab.errors import UsageError
from gnnstab.probe.replaying.loss_apart import apart


def of_output_and_batch(loss: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """``loss(output, batch)`` from a loss of two arguments, or of the output alone, which has its labels from around it.

    It is called on copies of what it holds, see `gnnstab.probe.replaying.loss_apart.apart`.
    Raises `UsageError` for a function without arguments: it could only judge an output of its own, and a repeated step has another.
    """
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError:
        pass
    except ValueError:  # Code without a signature is called as agreed.
        return apart(loss)
    else:
        return apart(loss)
    try:
        inspect.signature(loss).bind(None)
    except TypeError:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise UsageError(
            f"loss={name} can be called neither as loss(output, batch) nor as loss(output): the output of a repeated step is "
            "handed to it, and labels may come from around it, as in lambda output: criterion(output, y)"
        ) from None

    @functools.wraps(loss, updated=())
    def of_output(output: Any, _: Any) -> Any:
        return loss(output)

    return apart(of_output)
