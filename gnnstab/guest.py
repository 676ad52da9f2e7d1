"""Code of the user's that runs inside a call of gnnstab: it neither ends the process nor moves it to another folder."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from gnnstab.errors import UsageError, let_through, printable

_READS_ARGUMENTS = {"argparse", "optparse", "getopt", "click", "typer", "absl", "fire", "hydra", "jsonargparse"}
"""Packages that read the command line, and end the process where it is not theirs."""


@contextmanager
def guest() -> Iterator[None]:
    """Run the user's code inside: a model's factory, a forward, a loss, a module that is imported.

    The current folder is afterwards the one that it was. What a signal handler raises goes on.

    Raises:
        UsageError: The code ended with `SystemExit`, whatever its code: a process that ends there has judged nothing.
    """
    try:
        here = os.getcwd()
    except OSError:  # The folder is gone.
        here = ""
    try:
        yield
    except SystemExit as error:
        let_through(error)
        raise UsageError(exit_told(error)) from error
    finally:
        _return_to(here)


def _return_to(here: str) -> None:
    with suppress(OSError):
        if here and os.getcwd() != here:
            os.chdir(here)


def exit_told(error: SystemExit) -> str:
    """Which function or module ended the process, where, and what to do."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if not _is_between(frame)]
    installed = tuple(sysconfig.get_path(name) + os.sep for name in ("purelib", "platlib"))
    own = [(f, line) for f, line in frames if not f.f_code.co_filename.startswith(installed)] or frames
    code = "" if error.code is None else repr(error.code)
    ended = f"ended with SystemExit({printable(code)}), and nothing was judged"
    if not own:
        return f"code that gnnstab called {ended}"
    frame, line = own[-1]
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name).rpartition("<locals>.")[2]
    what = f"the module {frame.f_globals.get('__name__')}" if name == "<module>" else f"the function {name}"
    within = [f for f, _ in traceback.walk_tb(error.__traceback__)]
    within = within[within.index(own[0][0]) :]
    if any(_package(f) in _READS_ARGUMENTS for f in within):
        todo = "it read the command line, which is not its own here: let it take its settings from elsewhere"
    elif any(f.f_code.co_name == "<module>" for f in within):
        todo = 'put what shall not run at an import under `if __name__ == "__main__":`'
    else:
        todo = "let it return, or raise an exception that says why it cannot"
    return f"{what} (line {line} of {os.path.basename(frame.f_code.co_filename)}) {ended}; {todo}"


def _is_between(frame: FrameType) -> bool:
    """A frame of gnnstab, of the libraries through which it calls the user's code, or of Python's own."""
    return _package(frame) in {"gnnstab", *_BELOW} or frame.f_code.co_filename.startswith("<frozen ")


_BELOW = {*sys.stdlib_module_names, *_READS_ARGUMENTS, "torch", "torch_geometric", "joblib"} - {"__main__"}


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]
