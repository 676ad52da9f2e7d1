"""Models and functions that the user names as ``"pkg.mod:name"``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gnnstab.errors import UsageError, hint, let_through
from gnnstab.guest import guest

if TYPE_CHECKING:
    from torch import nn


def build(model: Any) -> nn.Module:
    """The module itself, or what a factory makes.

    Raises:
        UsageError: The factory cannot be found, fails, ends with `SystemExit`, or makes something else than a module.
    """
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    name = model if isinstance(model, str) else getattr(model, "__name__", repr(model))
    factory = resolve(model) if isinstance(model, str) else model
    with guest():
        try:
            made = factory()
        except Exception as error:
            let_through(error)
            raise UsageError(f"the model factory {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"the model factory {name} made a {type(made).__name__}, not a torch.nn.Module")
    return made


def resolve(reference: str) -> Callable[..., Any]:
    """The object behind ``"pkg.mod:name"``; the working directory is searched first.

    Raises:
        UsageError: The reference has another form, or its module or name does not exist.
    """
    module, separator, name = reference.partition(":")
    path, stem = os.path.split(module.removesuffix(".py"))
    if module.endswith(".py") and stem:
        place = f" and run in the folder {path}" if path else ""
        raise UsageError(
            f"{reference!r} names a file, where a module is asked for; write {stem}:{name or 'NAME'}{place}"
        )
    if not (module and separator and name):
        raise UsageError(f"{reference!r} is not of the form pkg.mod:name; write {module or 'pkg.mod'}:NAME")
    try:
        found: Any = _imported(module)
    except ImportError as error:
        raise UsageError(
            f"cannot import {module!r} for {reference!r}: {error}; run from the folder that holds it"
        ) from error
    except Exception as error:
        let_through(error)
        if isinstance(error.__cause__, SystemExit):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"line {last.lineno} of {os.path.basename(last.filename)}"
        raise UsageError(
            f"importing {module!r} for {reference!r} failed: {type(error).__name__}: {error} ({where})"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = hint(part, [known for known in dir(found) if callable(getattr(found, known, None))])
            raise UsageError(f"module {module!r} has no {name!r}{f'; {near}' if near else ''}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{reference!r} is a {type(found).__name__}, not something to call")
    return found  # type: ignore[no-any-return]


def _imported(module: str) -> Any:
    with _importable_from_here(), guest():
        return importlib.import_module(module)


@contextmanager
def _importable_from_here() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
