"""Gradients of activations, by tensor hooks that only read."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.hooks import ignore
from gnnstab.probe.state import State


class GradientHook:
    """Records every gradient that reaches one site; one object serves all steps and references no tensor."""

    __slots__ = ("_slots", "_state", "_where")

    def __init__(self, state: State, slot: int, where: str) -> None:
        self._state: State | None = state
        self._slots = (slot,)
        self._where = where

    def __call__(self, gradient: Tensor) -> None:
        """Record one gradient."""
        state = self._state
        if state is None:
            return
        grad = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            state.backward = True
            state.stage.put(self._slots, [gradient])
        except Exception as error:
            self._state = None
            state.failsafe.note(self._where, error)
        finally:
            torch._C._set_grad_enabled(grad)

    def watch(self, tensor: Tensor) -> None:
        """Record the gradients of ``tensor`` until the end of the step."""
        if self._state is not None:
            handle = tensor.register_hook(self)  # type: ignore[no-untyped-call]
            if tensor.is_leaf:
                self._state.handles.append(handle)

    def close(self) -> None:
        """Record nothing more."""
        self._state = None

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        return ignore
