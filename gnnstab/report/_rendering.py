"""Finds the renderer of a format, built in or offered by another package, and calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gnnstab.errors import ConfigurationError, UsageError
from gnnstab.plugins import installed, loaded
from gnnstab.records import Diagnosis
from gnnstab.report._formats import FORMATS
from gnnstab.report.faces import spoken

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "gnnstab.formats"
"""Entry-point group in which a package offers modules with a function ``render(diagnosis, **options) -> str``."""


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
    module = _module(format)
    if isinstance(diagnosis, Diagnosis):
        diagnosis = diagnosis if format == "json" else spoken(diagnosis, face)
        return _call(module, "render", format, diagnosis, options)
    diagnosis = diagnosis if format == "json" else [spoken(item, face) for item in diagnosis]
    if hasattr(module, "render_many"):
        return _call(module, "render_many", format, diagnosis, options)
    if len(diagnosis) != 1:
        raise UsageError(f"format {format!r} holds one target; {len(diagnosis)} were given")
    return _call(module, "render", format, diagnosis[0], options)


def supported(format: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that the format knows."""
    parameters = inspect.signature(_module(format).render).parameters
    return {name: value for name, value in options.items() if name in parameters}


def _call(module: Any, name: str, format: str, argument: Any, options: dict[str, Any]) -> str:
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None:
        raise ConfigurationError(f"format {format!r}: {module.__name__} has no function {name}(diagnosis)")
    _refuse_unknown_options(function, format, options)
    text = function(argument, **options)
    if not isinstance(text, str):
        raise ConfigurationError(f"format {format!r} returned a {type(text).__name__}, not text")
    return text


def format_names() -> tuple[str, ...]:
    """Names of all formats: the built-in ones in the order of the table, then those of plugins."""
    return (*FORMATS, *(plugin.name for plugin in installed(GROUP) if plugin.name not in FORMATS))


def load_plugin(name: str, offered: Iterable[EntryPoint]) -> Any:
    """The module that a plugin offers under this name.

    Raises `UsageError` when none does and `ConfigurationError`, naming the plugin, when it does not load.
    """
    found = [plugin for plugin in offered if plugin.name == name]
    if not found:
        raise UsageError(f"unknown format {name!r}; choose from {', '.join(format_names())}")
    if len(found) > 1:
        places = " and ".join(plugin.value for plugin in found)
        raise ConfigurationError(f"format {name!r} is offered by {places}; uninstall one of them")
    return loaded(found[0], "format")


def _module(format: str) -> Any:
    if format in FORMATS:
        return import_module(FORMATS[format])
    return load_plugin(format, installed(GROUP))


def _refuse_unknown_options(function: Callable[..., Any], format: str, options: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            known = ", ".join(list(parameters)[1:]) or "none"
            raise UsageError(f"format {format!r} has no option {name!r}; it has: {known}")
