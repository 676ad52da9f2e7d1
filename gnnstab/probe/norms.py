"""Which normalisation stands directly before and after an attention layer, by the tensors that pass between them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gnnstab.probe.failsafe import Failsafe
from gnnstab.probe.hooks import Hook

Neighbours = dict[str, dict[str, str]]
"""Layer → ``before`` and ``after`` → class name of the normalisation, ``""`` when there is none."""


@contextmanager
def neighbouring_norms(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[Neighbours]:
    """Watch one or several forwards; the dictionary fills while they run, in their order.

    Only what hands over the very same tensor counts: ``conv(norm(x))`` and ``norm(conv(x))``. With anything in between,
    an activation for instance, there is nothing *directly* before or after. A layer that was not called is not listed.
    """
    found: Neighbours = {}
    failsafe = Failsafe()
    watch = _Watch(found)
    hooks: list[Hook] = []
    handles: list[Any] = []

    def hook(name: str, module: nn.Module, is_layer: bool) -> None:
        def body(grad: bool, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            watch.called(name, module, is_layer, _first(args, kwargs), _tensor(output))

        hooks.append(Hook(f"the norms beside {name or 'the model'}", body, failsafe))
        handles.append(module.register_forward_hook(hooks[-1], with_kwargs=True))

    own = {id(layer) for layer in layers.values()}
    for name, layer in layers.items():
        hook(name, layer, True)
    for name, module in model.named_modules():
        if id(module) not in own and "Norm" in type(module).__name__:
            hook(name, module, False)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for one in hooks:
            one.close()


class _Watch:
    """Remembers, without keeping them alive, the tensors that norms and layers gave last."""

    def __init__(self, found: Neighbours) -> None:
        self._found = found
        self._norms: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._layers: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def called(
        self, name: str, module: nn.Module, is_layer: bool, entry: Tensor | None, leaving: Tensor | None
    ) -> None:
        kind = type(module).__name__
        if is_layer:
            beside = self._found.setdefault(name, {"before": "", "after": ""})
            beside["before"] = _made(self._norms, entry) or beside["before"]
            _remember(self._layers, leaving, name)
            return
        layer = _made(self._layers, entry)
        if layer:
            self._found[layer]["after"] = kind
        _remember(self._norms, leaving, kind)


def _remember(made: dict[int, tuple[weakref.ref[Tensor], str]], tensor: Tensor | None, name: str) -> None:
    if tensor is not None:
        made[id(tensor)] = (weakref.ref(tensor), name)


def _made(made: dict[int, tuple[weakref.ref[Tensor], str]], tensor: Tensor | None) -> str:
    reference, name = made.get(id(tensor), (None, ""))
    return name if tensor is not None and reference is not None and reference() is tensor else ""


def _first(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The node states that a module was called with; those of the source nodes for a pair."""
    return _tensor(args[0] if args else kwargs.get("x", next(iter(kwargs.values()), None)))


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return value if isinstance(value, Tensor) else None
