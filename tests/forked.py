"""A part of a test in a child process of its own, which may be limited, signalled or killed.

Forking is far cheaper than a new interpreter, which would have to import torch again.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gnnstab.errors import TraceError
from gnnstab.trace import Trace


class Child:
    """A forked process that runs ``body`` and sends back what it returns."""

    def __init__(self, body: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # The writer threads of traces are made for it.
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _run(body, writer)
        os.close(writer)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it on the spot, and wait until it has ended."""
        self.signal(signal.SIGKILL)
        os.close(self._reader)
        assert os.WTERMSIG(os.waitpid(self.pid, 0)[1]) == signal.SIGKILL

    def result(self, seconds: float = 60.0) -> Any:
        """What the body returned, or the exception that it raised; fails when it takes longer."""
        os.set_blocking(self._reader, False)
        received, until = b"", time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                part = os.read(self._reader, 1 << 16)
            except BlockingIOError:
                time.sleep(0.005)
                continue
            received += part
            if not part:
                break
        else:
            self.kill()
            raise AssertionError(f"the child was still running after {seconds} seconds")
        os.close(self._reader)
        status = os.waitpid(self.pid, 0)[1]
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"the child ended with status {status}"
        kind, value = pickle.loads(received)
        assert kind != "failed", value
        return value


def _run(body: Callable[[], Any], writer: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        try:
            answer = ("returned", body())
        except KeyboardInterrupt:
            answer = ("interrupted", "KeyboardInterrupt")
        except BaseException:
            answer = ("failed", traceback.format_exc())
        with os.fdopen(writer, "wb") as stream:
            pickle.dump(answer, stream)
        code = 0
    finally:
        # The interpreter of the test run must not be shut down a second time from here.
        os._exit(code)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll until the condition holds; fails with what was waited for."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds} seconds for {what}"
        time.sleep(0.01)


def last_step(path: Path) -> int:
    """The last step that a reader sees, or -1."""
    try:
        with Trace.open(path) as trace:
            return -1 if trace.last_step is None else trace.last_step
    except TraceError:
        return -1
