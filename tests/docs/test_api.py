"""The page of the Python API names everything that a user may import, and each of it says what it is."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import gnnstab.errors
import gnnstab.fixes
import gnnstab.nn
import gnnstab.testing
import gnnstab.verification
from gnnstab.fixes.table import FIXES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text(encoding="utf-8")
SOURCES = frozenset(map(str, Path(gnnstab.__file__).parent.rglob("*.py")))
"""PyG makes some methods of a layer, in files of its own, and gives them the layer's module."""

MODULES = (gnnstab, gnnstab.testing, gnnstab.fixes, gnnstab.nn, gnnstab.errors, gnnstab.verification)


def public(module: ModuleType) -> list[str]:
    """What ``from module import *`` is meant to give: ``__all__``, else the classes and functions of its own."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if not name.startswith("__")]
    own = {name: value for name, value in vars(module).items() if inspect.isclass(value) or inspect.isfunction(value)}
    return [name for name, value in own.items() if value.__module__ == module.__name__ and not name.startswith("_")]


def shown(path: str) -> object:
    """The object behind a dotted path of a directive."""
    first, *names = path.split(".")
    found: object = import_module(first)
    for name in names:
        # A function before the module of its name.
        found = getattr(found, name) if hasattr(found, name) else import_module(f"{found.__name__}.{name}")
    return found


def on_the_page() -> set[int]:
    """The identity of everything that a directive shows, the members of whole modules among it."""
    found = set()
    for kind, path in re.findall(r"^\.\. auto(\w+):: (\S+)", PAGE, re.MULTILINE):
        value = shown(path)
        found.add(id(value))
        if kind == "module":
            assert isinstance(value, ModuleType)
            found |= {id(getattr(value, name)) for name in public(value)}
    return found


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in MODULES for name in public(module)], ids=lambda x: str(x)
)
def test_every_public_name_stands_on_the_page_and_says_what_it_is(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    if isinstance(value, ModuleType):
        assert value in MODULES
        return
    assert id(value) in on_the_page(), f"docs/api.md lacks {module.__name__}.{name}"
    if not callable(value):
        return
    assert (inspect.getdoc(value) or "").strip(), f"{module.__name__}.{name} has no docstring"
    methods = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
    bare = [
        own for own, method in methods
        if not own.startswith("_") and method.__code__.co_filename in SOURCES and not inspect.getdoc(method)
    ]  # fmt: skip
    assert not bare, f"without a docstring: {bare}"


def test_the_page_of_fixes_has_a_row_for_every_fix() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "fixes.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(FIXES)
