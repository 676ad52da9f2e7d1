"""What other installed packages add to gnnstab through their entry points."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points


def installed(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, sorted by name; the installed packages are searched once per process."""
    return tuple(sorted(_all().get(group, ()), key=lambda plugin: (plugin.name, plugin.value)))


@lru_cache(maxsize=1)
def _all() -> dict[str, tuple[EntryPoint, ...]]:
    found = entry_points()
    return {group: tuple(found.select(group=group)) for group in found.groups if group.startswith("gnnstab.")}
