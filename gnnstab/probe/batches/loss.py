"""A loss as users write it: of the output and the batch, or of the output alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data.data import BaseData

from gnnstab.errors import UsageError, let_through
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import is_target
from gnnstab.probe.replaying.loss_apart import apart

Value = TypeVar("Value")


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


def called(loss: Callable[[Any, Any], Value], output: Any, batch: Any) -> Value:
    """What ``loss(output, batch)`` returns, of a batch as the user gave it.

    Raises `UsageError` where the loss fails, with what was handed to it, part by part, and where its labels are.
    """
    try:
        return loss(output, batch)
    except UsageError:  # Its reason is told already.
        raise
    except Exception as error:
        let_through(error)
        raise UsageError(
            f"the loss failed on the output and the batch: {type(error).__name__}: {error}. loss(output, batch) was handed output, "
            f"{_described(output)}, and batch, as it was given: {_described(batch)}. {_where_labels_are(batch)}"
        ) from error


def _described(value: Any) -> str:
    """Type and parts of a value, with the shapes of its tensors."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, (tuple, list)):
        return f"a {kind} of {len(value)} ({', '.join(map(_part, value[:_MOST]))}{_more(value)})"
    if isinstance(value, Mapping):
        shown = [f"{name}: {_part(part)}" for name, part in [*value.items()][:_MOST]]
        return f"a {kind} of {len(value)} ({', '.join(shown)}{_more(value)})"
    return f"a {_part(value)}"


def _part(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if not isinstance(value, BaseData):
        return type(value).__name__
    names = [*named_tensors((value,))]
    return f"{type(value).__name__} with {', '.join(names[:_MOST])}{_more(names)}"


def _more(parts: Any) -> str:
    return ", …" if len(parts) > _MOST else ""


_MOST = 6
"""Parts that a message lists."""


def _where_labels_are(batch: Any) -> str:
    if isinstance(batch, tuple):
        one = isinstance(batch[0] if batch else None, BaseData)
        alone = f"; or give the {type(batch[0]).__name__} alone, as batch, with its labels in it" if one else ""
        return f"Read the parts of the tuple in the loss, as batch[{len(batch) - 1}]{alone}"
    if isinstance(batch, Mapping):
        return "Read its entries in the loss by their names, as batch['y']; labels may be one more entry"
    return "Read the labels where it holds them, or give (batch, labels) and read batch[1] in the loss"


def loss_with_targets(batch: Any) -> tuple[Callable[[Any, Any], Tensor], str] | None:
    """The usual loss for the only targets that a batch holds, and what to call it; None where it holds none or several.

    Cross-entropy for classes, with logits of one or of two classes and more; a squared error for real numbers. It raises `UsageError` for an
    output that such targets are not compared with.
    """
    found = {name: tensor for name, tensor in named_tensors((batch,)).items() if is_target(name) and tensor.numel()}
    if len(found) != 1:
        return None
    ((name, targets),) = found.items()
    classes = not targets.is_floating_point()

    def loss(output: Any, _: Any) -> Tensor:
        y = targets.to(output.device) if isinstance(output, Tensor) else targets
        if classes and getattr(output, "ndim", 0) == 2 and output.shape[1] > 1 and y.numel() == len(output):
            return F.cross_entropy(output, y.reshape(-1))
        if not isinstance(output, Tensor) or output.numel() != y.numel():
            raise UsageError(f"the output is none that {name} is compared with in the usual way; pass loss=")
        compare = F.binary_cross_entropy_with_logits if classes else F.mse_loss
        return compare(output.reshape(-1), y.reshape(-1).to(output))

    return loss, f"the {'cross-entropy' if classes else 'squared error'} between the output and {name}"
