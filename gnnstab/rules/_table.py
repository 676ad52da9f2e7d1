"""The table of the built-in rules: the one that each file ``gs<number>_<name>.py`` declares."""

from importlib import import_module
from pathlib import Path

from gnnstab.rules.base import Rule


def _declared(module: str) -> type[Rule]:
    held = vars(import_module(f"gnnstab.rules.{module}")).values()
    (own,) = (r for r in held if isinstance(r, type) and issubclass(r, Rule) and r.__module__.endswith(f".{module}"))
    return own


RULES: tuple[type[Rule], ...] = tuple(_declared(path.stem) for path in sorted(Path(__file__).parent.glob("gs*_*.py")))
"""Every built-in rule, by code."""
