"""Gradients of activations, by hooks on the autograd graph that only read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import ignore
from gnnstab.probe.state import State
from gnnstab.torch_private import dispatch_modes, function_modes, set_grad_enabled
from gnnstab.undisturbed import without_modes


class GradientHook:
    """Records every gradient that reaches one site; one object serves all steps and references no tensor."""

    __slots__ = ("_slots", "_state", "_where")

    __torch_unserializable__ = True
    """`torch.save` warns of every other hook on a tensor that it leaves it out."""

    def __init__(self, state: State, slot: int, where: str) -> None:
        self._state: State | None = state
        self._slots = (slot,)
        self._where = where

    def __call__(self, gradient: Any) -> None:
        """Record one gradient; a node of the graph hands over those of all its outputs, of which the first is ours."""
        state = self._state
        if state is None or is_dynamo_compiling():  # Compiled autograd follows the backward, this hook included.
            return
        if type(gradient) is tuple:
            gradient = gradient[0]
        if gradient is None:
            return
        if dispatch_modes() or function_modes():
            if not is_compiling():
                with without_modes():
                    self._record(state, gradient)
        else:
            self._record(state, gradient)

    def _record(self, state: State, gradient: Any) -> None:
        # Within a backward they are off, unless it is to be differentiated itself.
        grad = torch.is_grad_enabled()
        if grad:
            set_grad_enabled(False)
        try:
            state.backward = True
            state.buffer.put_one(self._slots, gradient)
        except Exception as error:
            let_through(error)
            self._state = None
            state.error_guard.note(self._where, error)
        finally:
            if grad:
                set_grad_enabled(True)

    def watch(self, tensor: Tensor) -> None:
        """Record the gradients of ``tensor`` until the end of the step."""
        state = self._state
        if state is None:
            return
        node = tensor.grad_fn
        if node is not None and tensor.output_nr == 0:
            # A hook on the node costs half of one on the tensor, and ends with the graph.
            node.register_prehook(self)
            return
        handle = tensor.register_hook(self)  # type: ignore[no-untyped-call]
        if node is None:
            state.handles.append(handle)

    def close(self) -> None:
        """Record nothing more."""
        self._state = None

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        return ignore
