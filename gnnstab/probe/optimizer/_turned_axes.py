"""Attention of torch's own that runs over the axis of the batch, and not over what each of its rows holds; turned round on a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from gnnstab.layers import layer_of
from gnnstab.probe.attaching.norms import batch_vectors
from gnnstab.probe.operations.source_lines import Modules, caller_place
from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.replaying.replica import tensors_in

AXIS = "batch_first"
"""The setting that is turned round on a copy."""


def turned_axes(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The attention in ``forward`` of ``model``, a copy, whose softmax runs over as many rows as the batch or the output holds, beside another axis of several."""
    look = _Look(model)
    handles = [
        module.register_forward_pre_hook(partial(look.given, name), with_kwargs=True)
        for name, module in look.attention.items()
    ]
    handles.append(model.register_forward_pre_hook(look.rows_of, with_kwargs=True))
    try:
        look.rows |= {len(t) for _, t in tensors_in([forward()]) if t.dim()}
    finally:
        for handle in handles:
            handle.remove()
    turned = {name: shape for name, shape in look.shapes.items() if look.over_rows(name, shape)}
    if turned:
        name, shape = next(iter(turned.items()))
        first = look.attention[name].batch_first
        over, beside = (shape[1], shape[0]) if first else (shape[0], shape[1])
        line = f" ({look.lines[name]})" if look.lines[name] else ""
        yield Suspect(
            "normalization-misuse", tuple(turned), f"letting {listed(list(turned))} run over the other axis, as batch_first={not first} does,",
            f"the softmax of {listed(list(turned))} runs over the {over} rows of the batch, each of the {beside} that a row holds by itself: it is given "
            f"{tuple(shape)} with batch_first={first}{line}",
            partial(_turn, tuple(turned)), setting=AXIS,
        )  # fmt: skip


class _Look:
    """What the attention of a model is given in its first call, and how many rows come in and go out."""

    def __init__(self, model: nn.Module) -> None:
        self.attention = {n: m for n, m in model.named_modules() if n and hasattr(m, "batch_first") and layer_of(m)}
        self.rows = set[int]()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.lines: dict[str, str] = {}
        self._modules = Modules(model)

    def rows_of(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The lengths of all that comes in, and the number of graphs."""
        self.rows |= {len(t) for _, t in tensors_in([*args, *kwargs.values()]) if t.dim()}
        self.rows |= {int(t.max()) + 1 for t in batch_vectors(module, args, dict(kwargs)) if t.numel()}

    def given(self, name: str, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The shape of the queries of one call."""
        query = args[0] if args else kwargs.get("query")
        if name not in self.shapes and isinstance(query, Tensor) and query.dim() == 3:
            self.shapes[name] = tuple(query.shape)
            self.lines[name] = caller_place(self._modules, name)[0].words

    def over_rows(self, name: str, shape: tuple[int, ...]) -> bool:
        """True where the softmax runs over an axis of that many rows, and not the other one is as long by custom."""
        first = bool(self.attention[name].batch_first)
        over, beside = (shape[1], shape[0]) if first else (shape[0], shape[1])
        return over > 1 < beside and over in self.rows and not (first and beside in self.rows)


def _turn(names: tuple[str, ...], model: nn.Module) -> None:
    for name in names:
        module: Any = model.get_submodule(name)
        module.batch_first = not module.batch_first
