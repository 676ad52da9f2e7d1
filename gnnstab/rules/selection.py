"""Which rules run: select and ignore by code prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gnnstab.errors import UsageError


@dataclass(frozen=True, slots=True)
class Selection:
    """Prefixes of rule codes to run and to leave out; the longer prefix decides, ``ignore`` on a tie."""

    select: tuple[str, ...] = ()
    """Empty: all."""

    ignore: tuple[str, ...] = ()

    @classmethod
    def parse(cls, select: str | Sequence[str], ignore: str | Sequence[str], *, codes: Sequence[str]) -> Selection:
        """Check the prefixes against the known codes; a text may hold several, with commas between.

        Raises `UsageError` for a prefix that no code begins with. ``ALL`` stands for every rule.
        """
        return cls(_checked(listed(select), codes, "select"), _checked(listed(ignore), codes, "ignore"))

    def includes(self, code: str) -> bool:
        """True when the rule of this code runs."""
        chosen = _longest(self.select or ("",), code)
        return chosen >= 0 and chosen > _longest(self.ignore, code)


def listed(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """``"GS3,GS5"`` or a sequence of such texts → prefixes, in capitals."""
    items = [given] if isinstance(given, str) else given or ()
    return tuple(part.strip().upper() for item in items for part in item.split(","))


def _checked(prefixes: Sequence[str], codes: Sequence[str], option: str) -> tuple[str, ...]:
    from gnnstab.rules.registry import rule_classes

    # ALL is every rule; a rule's name stands for its code.
    meant = {rule.name.upper(): rule.code for rule in rule_classes()} | {"ALL": ""}
    cleaned = tuple(meant.get(p.strip().upper(), p.strip().upper()) for p in prefixes)
    for given, prefix in zip(prefixes, cleaned, strict=True):
        empty = not prefix and given.strip().upper() != "ALL"
        if empty or not any(code.startswith(prefix) for code in codes):
            raise UsageError(
                f"{option}: no rule code begins with {given!r} and no rule has that name; `gnnstab rules` lists them"
            )
    return cleaned


def _longest(prefixes: Sequence[str], code: str) -> int:
    """Length of the longest prefix of ``code`` among ``prefixes``, or -1."""
    return max((len(p) for p in prefixes if code.startswith(p)), default=-1)
