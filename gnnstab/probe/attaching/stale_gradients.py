"""Gradients of a step that the next one adds its own to, because nothing has cleared them in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gnnstab.probe.attaching.hooks import Hook
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
        self._ways = [_Way(one, self) for one in optimizers if not isinstance(one, torch.optim.LBFGS)]
        self._news: int | None = None

    def attach(self) -> None:
        """Hook the optimizers."""
        for way in self._ways:
            way.attach(self._recorder)

    def detach(self) -> None:
        """Remove what hooks are left."""
        for way in self._ways:
            way.end()

    def judged(self, kept: bool) -> None:
        """One optimizer's way was followed to its end."""
        if kept:
            self._news = self._recorder.step
            self.detach()
            self._recorder.writer.meta("stale.gradients", str(self._news))
        elif self._news is None:
            self._recorder.writer.meta("stale.gradients", "none")

    def take(self) -> int | None:
        """The step at which it became certain, once."""
        news, self._news = self._news, None
        return news


class _Way:
    """The gradient of one parameter from one step of its optimizer to the next."""

    def __init__(self, optimizer: torch.optim.Optimizer, whose: StaleGradients) -> None:
        self._optimizer, self._whose = optimizer, whose
        self._parameter: Tensor | None = None
        self._left: Hold | None = None
        self._added, self._kept = 0, 0
        self._hooks: list[Hook] = []
        self._handles: list[Any] = []

    def attach(self, recorder: Recorder) -> None:
        guard = recorder.state.error_guard
        before, after, added = (
            Hook("the gradients of a step", b, guard) for b in (self._before, self._after, self._add)
        )
        self._hooks = [before, after, added]
        self._own = {id(p) for p in recorder.model.parameters()}
        self._handles = [
            self._optimizer.register_step_pre_hook(lambda *_: before()),
            self._optimizer.register_step_post_hook(lambda *_: after()),
        ]

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        for hook in self._hooks:
            hook.close()
        self._parameter, self._handles, self._hooks = None, [], []

    def _after(self, grad: bool) -> None:
        """The optimizer has moved: what it leaves in the gradient is what the next backward finds."""
        if self._parameter is None:
            every = (p for group in self._optimizer.param_groups for p in group["params"])
            found = next((p for p in every if id(p) in self._own and p.is_leaf and _followed(p.grad)), None)
            if found is None:
                return
            self._parameter = found
            self._handles.append(found.register_post_accumulate_grad_hook(self._hooks[2]))
        self._left, self._added = _hold(self._parameter.grad), 0

    def _add(self, grad: bool, parameter: Tensor) -> None:
        """A backward has added to the gradient: by one change of what was left, or to something else."""
        now, left = _hold(parameter.grad), self._left
        self._added += 1
        self._left = now if left is not None and now == (left[0], left[1] + 1) else None

    def _before(self, grad: bool) -> None:
        """The optimizer is about to move."""
        if self._parameter is None or not self._added:
            return
        self._kept += self._left is not None
        if self._left is None or self._kept == _IN_A_ROW:
            kept = self._left is not None
            self.end()
            self._whose.judged(kept)


def _followed(gradient: Tensor | None) -> bool:
    return gradient is not None and not gradient.is_sparse and not gradient.is_inference()


def _hold(gradient: Tensor | None) -> Hold | None:
    return None if gradient is None or not _followed(gradient) else (id(gradient), gradient._version)
