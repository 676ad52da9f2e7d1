"""The settings in force, and where each of them came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gnnstab.config._suppressions import Suppression
from gnnstab.errors import UsageError
from gnnstab.records import SEVERITIES
from gnnstab.rules.engine import Override

DEFAULT = "default"


def is_address(text: str) -> bool:
    """True for an absolute http(s) address without blanks, and for none at all."""
    return not text or re.fullmatch(r"https?://[^\s/]+\S*", text) is not None


@dataclass(frozen=True)
class Settings:
    """Everything that a configuration file or the command line may set."""

    select: tuple[str, ...] = ()
    """Code prefixes of the rules to run; empty for all."""

    ignore: tuple[str, ...] = ()
    """Code prefixes of the rules to leave out."""

    fail_on: str = "warning"
    """Lowest severity that fails."""

    format: str = "text"
    """Format of standard output."""

    baseline: str | None = None
    """Path of the file of known findings; within the folder of the configuration file when it is set there."""

    docs_url: str = ""
    """Where the built documentation is served, for the links of SARIF; empty for no links."""

    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Rule code → threshold → value."""

    layers: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    """Layer glob → rule code → threshold → value."""

    suppressions: tuple[Suppression, ...] = ()

    origins: Mapping[str, str] = field(default_factory=dict)
    """Key → the file or option that set it; a key that is missing here has its default. ``""`` → the file that was read."""

    def origin(self, key: str) -> str:
        """Where the value of a key came from."""
        return self.origins.get(key, DEFAULT)

    def override(self, origin: str, **values: Any) -> Settings:
        """A copy with the values that are not None, each marked with its origin.

        Raises `UsageError` for a severity that does not exist.
        """
        given = {key: value for key, value in values.items() if value is not None}
        if "fail_on" in given and given["fail_on"] not in SEVERITIES:
            raise UsageError(f"unknown severity {given['fail_on']!r}; choose from {', '.join(SEVERITIES)}")
        if not is_address(given.get("docs_url", "")):
            raise UsageError(
                f"--docs-url needs an address such as https://docs.example.org/gnnstab, not {given['docs_url']!r}"
            )
        return replace(self, **given, origins={**self.origins, **dict.fromkeys(given, origin)})

    def overrides(self) -> tuple[Override, ...]:
        """The thresholds of single layers as the rule engine takes them; the first glob that matches counts."""
        return tuple(
            Override(glob, code, values) for glob, rules in self.layers.items() for code, values in rules.items()
        )

    def rows(self) -> Sequence[tuple[str, str, str]]:
        """Every setting as (key, value, origin), in a fixed order."""
        shown = {
            "select": ", ".join(self.select) or "all",
            "ignore": ", ".join(self.ignore) or "none",
            "fail_on": self.fail_on,
            "format": self.format,
            "baseline": self.baseline or "none",
            "docs_url": self.docs_url or "none",
        }
        rows = [(key.replace("_", "-"), value, self.origin(key)) for key, value in shown.items()]
        for key, tables in (("thresholds", {"": self.thresholds}), ("layers", self.layers)):
            rows += [
                (".".join(filter(None, (key, glob, code, name))), f"{value:g}", self.origin(key))
                for glob, rules in tables.items()
                for code, values in sorted(rules.items())
                for name, value in sorted(values.items())
            ]
        rows += [(f"suppressions.{s.code}", s.describe(), s.origin) for s in self.suppressions]
        return rows
