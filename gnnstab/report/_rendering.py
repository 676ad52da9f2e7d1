"""Finds the renderer of a format, built in or offered by another package, and calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from gnnstab.errors import ConfigurationError, UsageError
from gnnstab.plugins import installed, loaded
from gnnstab.records import Diagnosis
from gnnstab.report.faces import spoken

FORMATS: dict[str, str] = {
    "text": "gnnstab.report._text",
    "json": "gnnstab.report._json",
    "sarif": "gnnstab.report._sarif",
    "junit": "gnnstab.report._junit",
    "github": "gnnstab.report._github",
    "markdown": "gnnstab.report._markdown",
    "html": "gnnstab.report.html",
}
"""Format name → module, imported when the format is asked for."""

GROUP = "gnnstab.formats"
"""Entry-point group in which a package offers such modules.

They have ``render(diagnosis, **options) -> str`` for one diagnosis, ``render_many`` for a list of them, or both.
"""


def render(
    diagnosis: Diagnosis | Sequence[Diagnosis], format: str = "text", *, face: str = "python", **options: Any
) -> str:
    """A diagnosis, or several of them as one document, as text in the named format.

    Pure and deterministic: the same diagnosis gives the same characters; nothing is printed or opened.

    Args:
        diagnosis: One diagnosis, or several (formats that hold one only refuse them).
        format: A key of `FORMATS` or the name of a plugin's format.
        face: Whose options the sentences name: ``python`` (``batch=``) or ``cli`` (``--batch FILE``). JSON is the record
            as it is, so that one diagnosis gives one document.
        options: Passed on to the format, e.g. ``width`` and ``color`` of ``text``.

    Raises:
        UsageError: No such format, an option that it does not have, or several diagnoses where it takes one.
        ConfigurationError: A plugin's format does not load or does not return text.
    """
    module, single = _module(format), isinstance(diagnosis, Diagnosis)
    shown = [diagnosis] if isinstance(diagnosis, Diagnosis) else list(diagnosis)
    if format != "json":
        shown = [spoken(item, face) for item in shown]
    one, many = (getattr(module, name, None) for name in ("render", "render_many"))
    if many is not None and not (single and one):
        return _call(many, format, shown, options)
    if one is None:
        raise ConfigurationError(f"format {format!r}: {module.__name__} has no function render(diagnosis)")
    if len(shown) != 1:
        raise UsageError(f"format {format!r} holds one target; {len(shown)} were given")
    return _call(one, format, shown[0], options)


def supported(format: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the format knows."""
    module = _module(format)
    parameters = inspect.signature(getattr(module, "render", None) or module.render_many).parameters
    return {name: value for name, value in options.items() if name in parameters}


def holds_several(format: str) -> bool:
    """Whether a report of this format holds more than one target."""
    return hasattr(_module(format), "render_many")


def _call(function: Callable[..., Any], format: str, argument: Any, options: dict[str, Any]) -> str:
    parameters = inspect.signature(function).parameters
    unknown = [name for name in options if name not in parameters]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = ", ".join(list(parameters)[1:]) or "none"
        raise UsageError(f"format {format!r} has no option {unknown[0]!r}; it has: {known}")
    text = function(argument, **options)
    if not isinstance(text, str):
        raise ConfigurationError(f"format {format!r} returned a {type(text).__name__}, not text")
    return text


def format_names() -> tuple[str, ...]:
    """Names of all formats: the built-in ones in the order of the table, then those of plugins."""
    return (*FORMATS, *(plugin.name for plugin in installed(GROUP) if plugin.name not in FORMATS))


def _module(format: str) -> Any:
    """The module of a format; `UsageError` when there is none, `ConfigurationError` when a plugin's does not load."""
    if format in FORMATS:
        import_module("gnnstab.rich_loaded")
        return import_module(FORMATS[format])
    found = [plugin for plugin in installed(GROUP) if plugin.name == format]
    if not found:
        raise UsageError(f"unknown format {format!r}; choose from {', '.join(format_names())}")
    if len(found) > 1:
        places = " and ".join(plugin.value for plugin in found)
        raise ConfigurationError(f"format {format!r} is offered by {places}; uninstall one of them")
    return loaded(found[0], "format")
