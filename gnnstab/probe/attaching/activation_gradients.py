"""Gradients of activations, by hooks on the autograd graph that only read."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling, is_dynamo_compiling

from gnnstab.errors import let_through
from gnnstab.probe.attaching.hooks import ignore
from gnnstab.probe.state import State
from gnnstab.torch_private import dispatch_modes, function_modes, graph_task, set_grad_enabled
from gnnstab.undisturbed import without_modes


class GradientHook:
    """Records every gradient that reaches one site; one object serves all steps and references no tensor."""

    __slots__ = ("_carrier", "_slots", "_state", "_where")

    __torch_unserializable__ = True
    """`torch.save` warns of every other hook on a tensor that it leaves it out."""

    def __init__(self, state: State, slot: int, where: str) -> None:
        self._state: State | None = state
        self._slots = (slot,)
        self._where = where
        self._carrier: Tensor | None = None

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

    def watch(self, tensor: Tensor, *, hooked: bool) -> None:
        """Record the gradients of ``tensor`` until the end of the step, as the tensor's own hooks leave them.

        ``hooked`` says that these are there by now; else the model may give it some until its forward returns.
        """
        state, node = self._state, tensor.grad_fn
        if state is None:
            return
        if node is None or tensor.output_nr:
            handle = tensor.register_hook(self)  # type: ignore[no-untyped-call]
            if node is None:
                state.handles.append(handle)
        elif hooked:
            self.join(node)
        elif state.inside and graph_task() == -1:
            state.outputs.append((node, self))
        else:
            self.follow(node)

    def follow(self, node: Any) -> None:
        """Record what reaches the first output of a node of the graph, after all hooks of the tensor, also those to come; half the price of one on the tensor."""
        node.register_prehook(self)

    def join(self, node: Any) -> None:
        """The same after the hooks that are there, and before those to come, at a tenth of the price; both end with the graph."""
        if self._carrier is None:
            # A node takes over the hooks of any tensor.
            self._carrier = torch.empty(0, device="cpu")
            self._carrier._backward_hooks = OrderedDict({0: self})
        node._register_hook_dict(self._carrier)

    def close(self) -> None:
        """Record nothing more."""
        self._state = None

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        return ignore
