"""Gradients of a step that the next one adds its own to, because nothing has cleared them in between."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gnnstab.probe.attaching.hooks import Hook
from gnnstab.probe.error_guard import ErrorGuard
from gnnstab.probe.recorder import Recorder

_IN_A_ROW = 3
"""Steps in a row that must be so; the first that is not ends the look for good."""

Hold = tuple[int, int]
"""(identity, version) of a gradient; every change in place raises the version by one."""


class StaleGradients:
    """Follows the gradient of one parameter of each optimizer over the first steps of a run.

    Accumulation over several backwards is no such thing: there the gradients are cleared before the optimizer moves again. So what is followed
    is the way from one step of an optimizer to its next: each backward must have added to what the one before left, unchanged. ``zero_grad``, by
    whichever name, leaves no tensor or changes it; so does a decay of gradients that is meant.

    Args:
        recorder: Whose run it is; its trace is told.
        optimizers: Those that move the model; L-BFGS, which clears gradients within its step, is left out.
    """

    def __init__(self, recorder: Recorder, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._recorder = recorder
        self._ways = {id(one): _Way(one) for one in optimizers if not isinstance(one, torch.optim.LBFGS)}
        self._news: int | None = None

    def attach(self) -> None:
        """Get ready: `before` and `after` are told of the steps."""
        own = {id(p) for p in self._recorder.model.parameters()} if self._ways else set()
        for way in self._ways.values():
            way.begin(own, self._recorder.state.error_guard)

    def detach(self) -> None:
        """Remove what hooks are left."""
        for way in self._ways.values():
            way.end()

    def before(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer is about to move."""
        if (way := self._ways.get(id(optimizer))) is None or (kept := way.before()) is None:
            return
        del self._ways[id(optimizer)]
        way.end()
        if kept:
            self._news = self._recorder.step
            self.detach()
            self._ways.clear()
            self._recorder.writer.meta("stale.gradients", str(self._news))
        elif self._news is None:
            self._recorder.writer.meta("stale.gradients", "none")

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """It has moved."""
        if (way := self._ways.get(id(optimizer))) is not None:
            way.after()

    @property
    def follows(self) -> bool:
        """True while `after` has something to look at."""
        return bool(self._ways)

    def take(self) -> int | None:
        """The step at which it became certain, once."""
        news, self._news = self._news, None
        return news


class _Way:
    """The gradient of one parameter from one step of its optimizer to the next."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._own = frozenset[int]()
        self._parameter: Tensor | None = None
        self._left: Hold | None = None
        self._added, self._kept = 0, 0
        self._hook: Hook | None = None
        self._handle: RemovableHandle | None = None

    def begin(self, own: AbstractSet[int], error_guard: ErrorGuard) -> None:
        """``own`` are the identities of the model's parameters."""
        self._own = frozenset(own)
        self._hook = Hook("the gradients of a step", self._add, error_guard)

    def end(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        if self._hook is not None:
            self._hook.close()
        self._parameter = self._handle = self._hook = None

    def after(self) -> None:
        """The optimizer has moved: what it leaves in the gradient is what the next backward finds."""
        if self._parameter is None and self._hook is not None:
            every = (p for group in self._optimizer.param_groups for p in group["params"])
            found = next((p for p in every if id(p) in self._own and p.is_leaf and _followed(p.grad)), None)
            if found is None:
                return
            self._parameter, self._handle = found, found.register_post_accumulate_grad_hook(self._hook)
        if self._parameter is not None:
            self._left, self._added = _hold(self._parameter.grad), 0

    def _add(self, grad: bool, parameter: Tensor) -> None:
        """A backward has added to the gradient: by one change of what was left, or to something else."""
        now, left = _hold(parameter.grad), self._left
        self._added += 1
        self._left = now if left is not None and now == (left[0], left[1] + 1) else None

    def before(self) -> bool | None:
        """The optimizer is about to move: whether nothing has cleared its gradients, once that is certain."""
        if self._parameter is None or not self._added:
            return None
        self._kept += self._left is not None
        return False if self._left is None else True if self._kept == _IN_A_ROW else None


def _followed(gradient: Tensor | None) -> bool:
    return gradient is not None and not gradient.is_sparse and not gradient.is_inference()


def _hold(gradient: Tensor | None) -> Hold | None:
    return None if gradient is None or not _followed(gradient) else (id(gradient), gradient._version)
