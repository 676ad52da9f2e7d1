"""All rules that can run: the built-in table and what other packages add through the group ``gnnstab.rules``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gnnstab.errors import ConfigurationError, UsageError, hint
from gnnstab.plugins import installed, loaded, origin
from gnnstab.rules._table import RULES
from gnnstab.rules.base import Rule

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "gnnstab.rules"
"""Entry-point group in which a package offers rule classes."""

CODE = re.compile(r"[A-Z]{2,4}[0-9]{3}")
"""A legal rule code; matched in full."""


def rule_classes() -> tuple[type[Rule], ...]:
    """The built-in rules in the order of the table, then those of plugins.

    Raises `ConfigurationError` naming the plugin that does not load, has a malformed code, or takes one in use.
    """
    return join(RULES, installed(GROUP))


def rule_class(code: str) -> type[Rule]:
    """The rule of this code (upper or lower case) or name; raises `UsageError` when there is none."""
    wanted = code.strip()
    for rule in rule_classes():
        if wanted.upper() == rule.code or wanted.lower() == rule.name:
            return rule
    names = [name for rule in rule_classes() for name in (rule.code, rule.name)]
    near = hint(wanted.lower(), names) or hint(wanted.upper(), names)
    raise UsageError(f"there is no rule {code!r}; {near + ' ' if near else ''}`gnnstab rules` lists them")


def join(builtin: Sequence[type[Rule]], plugins: Iterable[EntryPoint]) -> tuple[type[Rule], ...]:
    """Load the plugins' rules and put them behind the built-in ones."""
    taken = {rule.code: "gnnstab itself" for rule in builtin}
    joined = list(builtin)
    for plugin in plugins:
        rule = _load(plugin)
        if rule.code in taken:
            raise ConfigurationError(
                f"rule plugin {origin(plugin)}: code {rule.code} is already in use by {taken[rule.code]}"
            )
        taken[rule.code] = f"plugin {origin(plugin)}"
        joined.append(rule)
    return tuple(joined)


def _load(plugin: EntryPoint) -> type[Rule]:
    rule = loaded(plugin, "rule")
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise ConfigurationError(f"rule plugin {origin(plugin)} is not a subclass of gnnstab.rules.base.Rule")
    for name in ("code", "name", "cause", "severity", "confidence"):
        if not isinstance(getattr(rule, name, None), str):
            raise ConfigurationError(f"rule plugin {origin(plugin)} lacks the class attribute {name!r}")
    if not CODE.fullmatch(rule.code):
        raise ConfigurationError(
            f"rule plugin {origin(plugin)}: code {rule.code!r} is not two to four capital letters and three digits"
        )
    return rule
