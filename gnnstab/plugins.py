"""Names that are found late: those of other installed packages, through their entry points, and those of heavy modules."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from gnnstab.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, sorted by name; the installed packages are searched once per process."""
    return tuple(sorted(_all().get(group, ()), key=lambda plugin: (plugin.name, plugin.value)))


def loaded(plugin: EntryPoint, kind: str) -> Any:
    """What a plugin offers; raises `ConfigurationError` that names it when it does not load."""
    try:
        return plugin.load()
    except Exception as error:  # whatever a stranger's module raises on import, the user must learn whose it is
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigurationError(f"{kind} plugin {origin(plugin)} failed to load: {reason}") from error


def origin(plugin: EntryPoint) -> str:
    """``'slack' (my_package.slack) of my-package``."""
    package = f" of {plugin.dist.name}" if plugin.dist is not None else ""
    return f"{plugin.name!r} ({plugin.value}){package}"


@lru_cache(maxsize=1)
def _all() -> dict[str, tuple[EntryPoint, ...]]:
    foreign = (f for f in sys.meta_path if f is not PathFinder and hasattr(f, "find_distributions"))
    if not any(foreign) and not any(map(_may_offer, sys.path)):
        return {}
    from importlib.metadata import entry_points  # Alone it takes a tenth of the time of a short command.

    found = entry_points()
    return {group: tuple(found.select(group=group)) for group in found.groups if group.startswith("gnnstab.")}


def _may_offer(folder: str) -> bool:
    """False where surely no package in this entry of `sys.path` offers anything to gnnstab."""
    try:
        names = os.listdir(folder or os.curdir)
    except OSError as error:
        return isinstance(error, NotADirectoryError)  # An archive, which may hold packages too.
    return any(n.endswith(".egg") or _names_a_group(os.path.join(folder, n)) for n in names if n.endswith(_PACKAGES))


_PACKAGES = (".egg", ".dist-info", ".egg-info")


def _names_a_group(package: str) -> bool:
    try:
        with open(os.path.join(package, "entry_points.txt"), "rb") as file:
            return re.search(rb"\[\s*gnnstab\.", file.read()) is not None
    except OSError:
        return False  # Most packages offer nothing to anybody.


def on_first_use(package: str, **modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package whose names are loaded when they are first asked for.

    ``modules``: a module of the package → the names that it holds, parted by blanks.
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get
