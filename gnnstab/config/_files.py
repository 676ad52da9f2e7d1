"""Finds and reads the one configuration file of a project."""

from __future__ import annotations

import configparser
import re
import stat
import sys
from pathlib import Path
from typing import Any

from gnnstab.config._parsing import parse, shown
from gnnstab.config._settings import Settings
from gnnstab.errors import ConfigurationError, printable

MOST_DOTS, MOST_DOTS_OF_ALL = 1000, 20_000
"""In one line of a TOML file, and in all of it; each may make a table, of some five thousand bytes."""

MOST_WALKED = 1_000_000
"""Dots of the deepest header of a TOML file, times its lines and dots: tables that the parser looks up, in a fifth of a second."""

MOST_LINES = 20_000
"""Of an ini file; the parser's message about lines that it does not understand grows with their square."""

_BLANKS = re.compile(r"[^\S\n]{50,}")
"""A run of blanks so long that the ini parser, whose time grows with its square, must not see it."""

LARGEST = 1_000_000
"""Bytes; a configuration file is never larger, so anything larger is a mistake."""


def load(start: Path, *, file: Path | None = None, isolated: bool = False) -> Settings:
    """The settings of the project that ``start`` (a folder) lies in.

    Args:
        start: Folder from which to look upward for pyproject.toml with ``[tool.gnnstab]`` or setup.cfg with ``[gnnstab]``.
        file: Read this file instead of looking for one.
        isolated: Read no file at all.

    Raises:
        ConfigurationError: The file cannot be read, both files of a folder have settings, or a setting is wrong.
    """
    if file is not None and isolated:
        raise ConfigurationError("--config and --isolated exclude each other")
    if file is not None:
        section = _section(file)
        if section is None:
            name = "[tool.gnnstab]" if file.suffix == ".toml" else "[gnnstab]"
            raise ConfigurationError(f"{file}: no section {name} in this file")
        return parse(section, file)
    found = None if isolated else _find(start)
    return parse(*found) if found else Settings()


def _find(start: Path) -> tuple[dict[str, Any], Path] | None:
    """Section and file of the nearest folder that has settings; the search ends at the root of a repository."""
    folder = start.resolve()
    for candidate in (folder, *folder.parents):
        files = [candidate / "pyproject.toml", candidate / "setup.cfg"]
        sections = [(section, file) for file in files if file.is_file() and (section := _section(file)) is not None]
        if len(sections) > 1:
            raise ConfigurationError(
                f"{candidate}: both pyproject.toml [tool.gnnstab] and setup.cfg [gnnstab] have settings; keep one of them"
            )
        if sections:
            return sections[0]
        if (candidate / ".git").exists():
            return None
    return None


def _section(file: Path) -> dict[str, Any] | None:
    """The settings of a file as nested plain values, or None when it has none."""
    text = _read(file)
    return _toml(file, text) if file.suffix == ".toml" else _ini(file, text)


def _read(file: Path) -> str:
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ConfigurationError(f"{file}: is not a regular file")
        if state.st_size > LARGEST:
            raise ConfigurationError(f"{file}: larger than {LARGEST} bytes, which no configuration is")
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # A path with a NUL in it.
        raise ConfigurationError(f"{file}: {error}") from error


def _toml(file: Path, text: str) -> dict[str, Any] | None:
    # The name of the section first: a file without it costs no parser, and a broken one of another tool is not ours to judge.
    if "gnnstab" not in text:
        return None
    # Not `splitlines`: the name of a table may hold what that parts lines at.
    lines = text.split("\n")
    if any(line.count(".") > MOST_DOTS for line in lines):
        # The parser makes a table of every part of a dotted key, and the interpreter crashes on a hundred thousand of
        # them within each other.
        raise ConfigurationError(f"{file}: not read: it has a line with more than {MOST_DOTS} dots")
    if text.count(".") > MOST_DOTS_OF_ALL:
        raise ConfigurationError(
            f"{file}: not read: it has more than {MOST_DOTS_OF_ALL} dots, which no configuration has"
        )
    deepest = max((line.count(".") for line in lines if line.lstrip().startswith("[")), default=0)
    if deepest * (len(lines) + text.count(".")) > MOST_WALKED:
        # The parser walks through all tables of the header for each key below it.
        raise ConfigurationError(
            f"{file}: not read: it has {len(lines)} lines and a table with {deepest} dots, which no configuration has"
        )
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]
    try:
        section = tomllib.loads(text).get("tool", {}).get("gnnstab")
    except (ValueError, RecursionError, AttributeError) as error:
        raise ConfigurationError(f"{file}: not valid TOML: {printable(' '.join(str(error).split()))}") from error
    if section is not None and not isinstance(section, dict):
        raise ConfigurationError(f"{file}: tool.gnnstab must be a table, not {shown(section)}")
    return section


def _ini(file: Path, text: str) -> dict[str, Any] | None:
    """``[gnnstab]``, ``[gnnstab:thresholds:GS301]``, ``[gnnstab:layers:GLOB:GS301]``, ``[gnnstab:suppression:NAME]``."""
    if "[gnnstab" not in text:
        return None
    if text.count("\n") > MOST_LINES:
        raise ConfigurationError(f"{file}: not read: it has more than {MOST_LINES} lines, which no configuration has")
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    try:
        parser.read_string(_BLANKS.sub(" ", text), source=str(file))
    except configparser.Error as error:
        raise ConfigurationError(f"{file}: {printable(' '.join(str(error).split()), 400)}") from error
    own = [name for name in parser.sections() if name.split(":")[0] == "gnnstab"]
    result: dict[str, Any] = {}
    for name in own:
        _place(result, name.split(":")[1:], dict(parser[name]), f"{file}: [{printable(name, 80)}]")
    return result if own else None


def _place(result: dict[str, Any], path: list[str], values: dict[str, str], where: str) -> None:
    """Put the values of one ini section where the TOML form has them."""
    if not path:
        result.update(values)
        return
    table = "suppressions" if path[0] == "suppression" else path[0]
    if isinstance(result.get(table), str):
        raise ConfigurationError(f"{where}: {table} is a key of [gnnstab] as well; keep one of them")
    if path[0] == "thresholds" and len(path) == 2:
        result.setdefault("thresholds", {})[path[1]] = values
    elif path[0] == "layers" and len(path) >= 3:
        result.setdefault("layers", {}).setdefault(":".join(path[1:-1]), {})[path[-1]] = values
    elif path[0] == "suppression" and len(path) == 2:
        result.setdefault("suppressions", []).append(values)
    else:
        raise ConfigurationError(
            f"{where} is no section of gnnstab; it knows [gnnstab], [gnnstab:thresholds:CODE], [gnnstab:layers:GLOB:CODE] "
            "and [gnnstab:suppression:NAME]"
        )
