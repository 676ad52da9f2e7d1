"""Every exception that gnnstab raises on purpose.

::

    GnnstabError
    ├── UsageError               the call or the command line asks for something impossible
    │   └── ConfigurationError   a configuration file, baseline or suppression is wrong
    ├── LoadError                a file cannot be read, or is not what it was said to be
    │   ├── UnsafeFileError      reading it would have to run code from the file
    │   ├── CheckpointMismatch   checkpoint and model do not belong together
    │   └── TraceError           a trace is damaged, locked, or written by a newer version
    ├── MissingExtra             an optional package is not installed
    ├── NothingEvaluable         the target holds nothing that gnnstab could judge
    ├── FixError                 a fix cannot be applied to this model
    ├── UnstableError            `Monitor(on_finding="raise")` met a finding
    └── RuleOutcome              how a rule ends without a verdict (caught by the engine)
        ├── NotEvaluable         a signal that the rule needs was not observed
        └── NotApplicable        the rule does not concern this model
"""

from __future__ import annotations

import difflib
import dis
import inspect
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from gnnstab.characters import is_hidden

if TYPE_CHECKING:
    from gnnstab.records import Finding


class GnnstabError(Exception):
    """Base of all; the message is one line that says what, where and what to do.

    Messages quote files that anybody may have written: `printable` makes them fit for a terminal, a log and a report.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message), LONGEST_MESSAGE))


class UsageError(GnnstabError):
    """The call or the command line asks for something impossible."""


class ConfigurationError(UsageError):
    """A configuration file, baseline or suppression is wrong."""


class LoadError(GnnstabError):
    """A file cannot be read, or is not what it was said to be."""


class UnsafeFileError(LoadError):
    """Reading the file would have to run code that it carries."""


class CheckpointMismatch(LoadError):
    """A checkpoint and a model do not belong together."""


class TraceError(LoadError):
    """A trace is damaged, locked, or written by a newer version."""


class MissingExtra(GnnstabError):
    """An optional package is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'gnnstab[{extra}]'")


class NothingEvaluable(GnnstabError):
    """The target holds nothing that gnnstab could judge."""


class FixError(GnnstabError):
    """A fix cannot be applied to this model."""


class UnstableError(GnnstabError):
    """Raised out of a monitored training loop by ``Monitor(on_finding="raise")``."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class RuleOutcome(GnnstabError):
    """How a rule ends without a verdict; the engine turns it into a status."""


class NotEvaluable(RuleOutcome):
    """A signal that the rule needs was not observed; the message says how to make it visible."""


class NotApplicable(RuleOutcome):
    """The rule does not concern this model; the message says why."""


class GnnstabWarning(UserWarning):
    """Something that the user of a monitored run should know; never raised by gnnstab itself."""


_MACHINERY = ("gnnstab", "torch", "torch_geometric", "lightning", "pytorch_lightning", "lightning_fabric", "contextlib")
"""Packages whose frames lie between a training loop and what gnnstab has to say about it."""


def warn(message: str) -> None:
    """A `GnnstabWarning` that points at the user's line: the innermost frame outside gnnstab and the training machinery.

    Where the user turned warnings into errors it is shown all the same, and not raised: no training ends for it.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _MACHINERY:
        level, frame = level + 1, frame.f_back
    try:
        try:
            warnings.warn(message, GnnstabWarning, stacklevel=level)
        except GnnstabWarning as refused:
            warnings.showwarning(refused, GnnstabWarning, frame.f_code.co_filename, frame.f_lineno)
    except Exception as error:  # Nothing can be told: ``sys.stderr`` is closed, say.
        let_through(error)


def let_through(error: BaseException) -> None:
    """Raise ``error``, or what it arose from, where it came from outside, while code of gnnstab happened to run.

    So do the exceptions of the user's signal handlers (a deadline), and those that another thread sets in this one.
    What the user's own model, loss or rule raised when gnnstab called it comes from inside.
    """
    origin: BaseException | None = error
    while origin is not None:
        if _from_outside(origin):
            raise origin
        origin = origin.__cause__


def ours(error: BaseException) -> bool:
    """True for a failure of gnnstab's own code, and not of the user's that it has called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    # A call that does not fit what is called, as of a loss of three arguments, is raised by the caller.
    calls = isinstance(error, TypeError) and frame.f_code.co_name == "forward"
    return str(frame.f_globals.get("__name__")).startswith("gnnstab.") and not calls


def is_thrown(error: BaseException) -> bool:
    """Whether a ``raise`` in code of the user's made this exception, and no signal: those interrupt between two instructions."""
    frames, trace = [frame for frame, _ in traceback.walk_tb(error.__traceback__)], error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or isinstance(error.__context__, type(error)):
        return False
    by_statement = frames[-1].f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    by_user = _package(frames[-1].f_globals.get("__name__")) not in _KNOWN
    return by_statement and by_user and {frame.f_code for frame in frames}.isdisjoint(_handlers())


def _from_outside(error: BaseException) -> bool:
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not {frame.f_code for frame in frames}.isdisjoint(_handlers()):
        return True
    if any(_package(frame.f_globals.get("__name__")) not in _KNOWN for frame in frames):
        return False
    return not isinstance(error, Exception) or _package(type(error).__module__) not in _KNOWN


def _handlers() -> set[types.CodeType]:
    """The code of the signal handlers that are installed."""
    found = [inspect.unwrap(h) for h in map(signal.getsignal, signal.valid_signals()) if callable(h)]
    plain = [getattr(h, "func", h) for h in found]  # A `functools.partial` is asked for what it calls.
    functions: list[Any] = [h if hasattr(h, "__code__") else type(h).__call__ for h in plain]
    return {f.__code__ for f in functions if hasattr(f, "__code__")}


def _package(module: object) -> str:
    return str(module).partition(".")[0]


_KNOWN = {*sys.stdlib_module_names, "gnnstab", "torch", "torch_geometric", "numpy", "scipy"} - {"__main__"}
"""Packages in whose frames, and with whose exceptions, gnnstab itself may fail."""


def hint(given: str, known: Iterable[str], otherwise: str = "") -> str:
    """``did you mean 'qk-norm' or 'qk-clip'?`` for a mistyped name; ``otherwise`` where nothing known comes near."""
    names = list(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.7)
    # The beginning of a word: `saturation` means what is `saturated`.
    stem = given.lower()[: max(5, len(given) - 3)]
    near += [name for name in names if len(given) > 3 and stem in name.lower() and name not in near]
    return f"did you mean {' or '.join(repr(name) for name in near[:3])}?" if near else otherwise


LONGEST_MESSAGE = 2000
"""Characters of an error's message."""

LONGEST_NAME = 200
"""Characters of a name out of a file that are kept; a longer one is cut and marked."""


def printable(text: object, limit: int = LONGEST_NAME) -> str:
    """One line without control characters, lone surrogates or terminal escapes, cut at ``limit`` characters."""
    raw = text if isinstance(text, str) else str(text) if isinstance(text, (int, float, bool)) else type(text).__name__
    cut = raw[:limit]
    cut = "".join(
        c if c.isprintable() and not is_hidden(c) else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in cut
    )
    return cut + "…" if len(raw) > limit else cut
