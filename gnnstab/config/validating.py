"""Holds settings against the rules and formats that are installed."""

from __future__ import annotations

from gnnstab.config._settings import Settings
from gnnstab.errors import ConfigurationError, UsageError
from gnnstab.report import format_names
from gnnstab.rules.engine import configure
from gnnstab.rules.registry import rule_classes
from gnnstab.rules.selection import Selection


def validate(settings: Settings) -> Settings:
    """The settings themselves.

    Raises `ConfigurationError` (for what a file says) or `UsageError` (for what the command line says) when a code, a
    threshold or a format does not exist.
    """
    rules = {rule.code: rule for rule in rule_classes()}
    for key, prefixes in (("select", settings.select), ("ignore", settings.ignore)):
        try:
            Selection.parse(prefixes, (), codes=list(rules))
        except UsageError as error:
            text = str(error).removeprefix("select: ")
            raise ConfigurationError(f"{settings.origin(key)}: {key}: {text}") from error
    groups = [
        ("thresholds", settings.thresholds),
        *((f"layers.{glob}", given) for glob, given in settings.layers.items()),
    ]
    for place, thresholds in groups:
        where = f"{settings.origin(place.split('.')[0])}: {place}"
        for code, values in thresholds.items():
            if code not in rules:
                raise ConfigurationError(f"{where}: there is no rule {code!r}; `gnnstab rules` lists them")
            try:
                configure(rules[code], values)
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: {error}") from error
    for suppression in settings.suppressions:
        if not any(code.startswith(suppression.code) for code in rules):
            raise ConfigurationError(
                f"{suppression.origin}: suppressions: no rule code begins with {suppression.code!r}"
            )
    if settings.format not in format_names():
        known = ", ".join(format_names())
        raise ConfigurationError(
            f"{settings.origin('format')}: unknown format {settings.format!r}; choose from {known}"
        )
    return settings
