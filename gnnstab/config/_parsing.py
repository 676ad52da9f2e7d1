"""Turns the raw section of a configuration file into `Settings`; every mistake is named with its place."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

from gnnstab.config._settings import Settings, is_address
from gnnstab.config._suppressions import MOST, Suppression
from gnnstab.errors import ConfigurationError, hint, printable
from gnnstab.records import SEVERITIES

KEYS = ("select", "ignore", "fail-on", "format", "baseline", "docs-url", "thresholds", "layers", "suppressions")
SUPPRESSION_KEYS = ("code", "layer", "reason", "expires")


class _Repr(reprlib.Repr):
    """A hexadecimal number of a TOML file may be longer than Python writes out."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"a number of {x.bit_length()} bits"


shown = _Repr().repr
"""A value of a file in a few characters."""


def parse(section: Mapping[str, Any], file: Path) -> Settings:
    """The settings of one section; raises `ConfigurationError` for an unknown key or an impossible value."""
    where = str(file)
    _refuse_unknown(section, KEYS, where)
    baseline, layers = section.get("baseline"), _table(section.get("layers", {}), f"{where}: layers")
    _refuse_more(sum(len(rules) for rules in layers.values() if isinstance(rules, Mapping)), f"{where}: layers")
    return Settings(
        select=_codes(section.get("select", ()), f"{where}: select"),
        ignore=_codes(section.get("ignore", ()), f"{where}: ignore"),
        fail_on=_severity(section.get("fail-on", "warning"), f"{where}: fail-on"),
        format=_text(section.get("format", "text"), f"{where}: format"),
        baseline=None if baseline is None else _beside(file, _text(baseline, f"{where}: baseline")),
        docs_url=_address(section.get("docs-url", ""), f"{where}: docs-url"),
        thresholds=_thresholds(section.get("thresholds", {}), f"{where}: thresholds"),
        layers={
            str(glob): _thresholds(rules, f"{where}: layers.{printable(glob, 80)}") for glob, rules in layers.items()
        },
        suppressions=tuple(_suppressions(section.get("suppressions", ()), where)),
        origins={"": where, **{key.replace("-", "_"): where for key in section}},
    )


def _refuse_unknown(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = hint(printable(key), known, f"known are {', '.join(known)}")
            raise ConfigurationError(f"{where}: unknown key {shown(key)}; {near}")


def _refuse_more(count: int, where: str) -> None:
    if count > MOST:
        raise ConfigurationError(f"{where} has {count} entries; at most {MOST} are read")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{where} must be a text, not {shown(value)}")
    return value.strip()


def _address(value: Any, where: str) -> str:
    if not isinstance(value, str) or not is_address(value.strip()):
        raise ConfigurationError(
            f"{where} must be an address such as https://docs.example.org/gnnstab, not {shown(value)}"
        )
    return value.strip()


def _beside(file: Path, name: str) -> str:
    """A path that the file names; --update-baseline writes there, so whoever wrote the file chooses no other folder."""
    path = file.parent / name
    with suppress(ValueError):  # A NUL, or another drive.
        folder = os.path.realpath(file.parent)
        if os.path.commonpath([folder, os.path.realpath(path.parent)]) == folder and path.name not in ("", ".."):
            return str(path)
    raise ConfigurationError(
        f"{file}: baseline must lie within the folder of this file, not {shown(name)}; any other takes --baseline"
    )


def _severity(value: Any, where: str) -> str:
    if value not in SEVERITIES:
        raise ConfigurationError(f"{where} must be one of {', '.join(SEVERITIES)}, not {shown(value)}")
    return str(value)


def _codes(value: Any, where: str) -> tuple[str, ...]:
    """A list of code prefixes; an ini file gives them as one text parted by commas, blanks or lines."""
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item.strip() for item in items):
        raise ConfigurationError(f"{where} must be a list of rule codes or prefixes, not {shown(value)}")
    return tuple(item.strip().upper() for item in items)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} must be a table, not {shown(value)}")
    return value


def _thresholds(value: Any, where: str) -> dict[str, dict[str, float]]:
    return {
        str(code): {
            str(name): _number(number, f"{where}.{printable(code, 40)}.{printable(name, 40)}")
            for name, number in _table(values, f"{where}.{printable(code, 40)}").items()
        }
        for code, values in _table(value, where).items()
    }


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"{where} must be a number, not {shown(value)}") from error
    if not math.isfinite(number):
        raise ConfigurationError(
            f"{where} must be finite; with {number} a limit is never crossed: ignore the rule, which reports then say"
        )
    return number


def _suppressions(value: Any, file: str) -> list[Suppression]:
    if not isinstance(value, (list, tuple)):
        raise ConfigurationError(f"{file}: suppressions must be a list of tables, not {shown(value)}")
    _refuse_more(len(value), f"{file}: suppressions")
    found = []
    for position, item in enumerate(value, start=1):
        where = f"{file}: suppression {position}"
        entry = _table(item, where)
        _refuse_unknown(entry, SUPPRESSION_KEYS, where)
        reason = entry.get("reason", "")
        if isinstance(reason, str) and not reason.strip():
            raise ConfigurationError(f"{where} has no reason; say why the finding is accepted")
        found.append(
            Suppression(
                code=_text(entry.get("code"), f"{where}: code").upper(),
                reason=_text(reason, f"{where}: reason"),
                layer=_text(entry.get("layer", "*"), f"{where}: layer"),
                expires=_day(entry.get("expires"), f"{where}: expires"),
                origin=file,
            )
        )
    return found


def _day(value: Any, where: str) -> date | None:
    if isinstance(value, datetime):
        return value.date()
    if value is None or isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value).strip())
    except ValueError as error:
        raise ConfigurationError(f"{where} must be a day such as 2026-12-31, not {shown(value)}") from error
