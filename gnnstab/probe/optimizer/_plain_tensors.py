"""Plain tensors of modules that a forward computes with, and made parameters on a copy: no optimizer moves what is neither parameter nor made of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gnnstab.probe.optimizer._suspects import Suspect, listed
from gnnstab.probe.places.plain_tensors import plain_tensors


class _Used(TorchFunctionMode):
    """Within the block, which of these tensors a function was given together with one that gets a gradient."""

    def __init__(self, known: Mapping[int, tuple[str, str]]) -> None:
        super().__init__()
        self._known = known
        self.found: dict[tuple[str, str], None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.requires_grad:
            for given in args:
                if type(given) is Tensor and not given.requires_grad:
                    owner = self._known.get(given.untyped_storage().data_ptr())
                    if owner is not None:
                        self.found[owner] = None
        return result


def plain(model: nn.Module, forward: Callable[[], Any]) -> Iterator[Suspect]:
    """The attributes of ``model``, a copy, that are tensors of numbers that differ, neither parameter nor buffer, and that learned values are computed with."""
    held = {
        tensor.untyped_storage().data_ptr(): (name, key)
        for name, module in model.named_modules()
        for key, tensor in plain_tensors(module)
    }
    if not held:
        return
    with _Used(held) as used:
        forward()
    if used.found:
        names = [f"{name}.{key}".lstrip(".") for name, key in used.found]
        one = len(names) == 1
        yield Suspect(
            "never-updated-parameter", tuple(names), f"making {listed(names)} {'a parameter' if one else 'parameters'}",
            f"{listed(names)} {'is a plain tensor of its module' if one else 'are plain tensors of their module'}, neither parameter nor buffer: no optimizer moves {'it' if one else 'them'}",
            partial(_register, tuple(used.found)),
        )  # fmt: skip


def _register(owners: Sequence[tuple[str, str]], model: nn.Module) -> None:
    for name, key in owners:
        module = model.get_submodule(name)
        setattr(module, key, nn.Parameter(getattr(module, key).detach().clone()))
