"""What keeps a failure inside gnnstab from reaching the run that it watches."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import torch

from gnnstab.errors import let_through, ours, warn
from gnnstab.left_out import left_out
from gnnstab.records import Event
from gnnstab.torch_private import set_grad_enabled
from gnnstab.undisturbed import modes_aside

_LIMIT = 16
"""Failures that are kept; each hook fails at most once, so more would say nothing new."""


class ErrorGuard:
    """Collects failures of the tool as events and says so once."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        """Failures that were not yet handed on."""

        self.step = 0
        self._count = 0

    def failed(self, where: str, error: BaseException) -> None:
        """Note a failure of the tool in ``where``."""
        self._count += 1
        if self._count > _LIMIT:
            return
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown place"
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        self.events.append(
            Event(self.step, "tool-failure", message=f"{where}: {reason}", detail={"where": where, "place": place})
        )
        if self._count == 1:
            warn(f"gnnstab failed in {where} and records less from here on; the training is not affected ({reason})")

    def guard(self, where: str, body: Callable[..., object], *args: object) -> bool:
        """Call ``body`` with ``args``, where gradients are switched off already; False after a failure."""
        try:
            body(*args)
        except BaseException as error:  # A stranger's model may well exit, on a copy too.
            self.note(where, error)
            return False
        return True

    def run(self, where: str, body: Callable[[], object]) -> bool:
        """Call ``body`` with gradients switched off; a failure is noted, and the answer is then False."""
        with modes_aside():
            grad = torch.is_grad_enabled()
            if grad:
                set_grad_enabled(False)
            try:
                return self.guard(where, body)
            finally:
                if grad:
                    set_grad_enabled(True)

    def note(self, where: str, error: BaseException) -> None:
        """Like `failed`, safe to call from a hook; what came from outside gnnstab is raised on, see `let_through`."""
        let_through(error)
        if not isinstance(error, Exception) and not ours(error):
            left_out(f"{where}: on a copy, code of yours raised {type(error).__name__}")
            return
        self.failed(where, error)
