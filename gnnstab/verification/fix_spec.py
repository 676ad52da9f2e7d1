"""Which fixes to verify, as the caller names them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gnnstab.errors import UsageError
from gnnstab.fixes import check_options


@dataclass(frozen=True)
class FixSpec:
    """One fix and its options."""

    fix: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.label)

    @property
    def label(self) -> str:
        """``residual(weight=1.0)``."""
        inner = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.fix}({inner})" if inner else self.fix


def fix_specs(fixes: Any) -> list[FixSpec]:
    """Names, ``(name, options)`` pairs, or texts like ``"residual:weight=1.0,seed=3"``; one of them or several.

    Raises:
        FixError: No such fix, or it has no such option.
        UsageError: Something else.
    """
    several = [fixes] if isinstance(fixes, (str, FixSpec)) or _is_pair(fixes) else fixes
    if not isinstance(several, Iterable):
        raise UsageError(f"fixes must be names or (name, options) pairs, not {type(fixes).__name__}")
    found = [_one(item) for item in several]
    if not found:
        raise UsageError("no fix to verify; name at least one (gnnstab.fixes.FIXES lists them)")
    for item in found:
        check_options(item.fix, item.options)
    return found


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Mapping)


def _one(item: Any) -> FixSpec:
    if isinstance(item, FixSpec):
        return item
    if _is_pair(item):
        return FixSpec(item[0], dict(item[1]))
    if isinstance(item, str):
        name, _, rest = item.partition(":")
        return FixSpec(name.strip(), dict(_option(part) for part in rest.split(",") if part.strip()))
    raise UsageError(f"a fix must be a name or a (name, options) pair, not {item!r}")


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"option {text!r} is not of the form name=value")
    try:
        return key.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return key.strip(), value.strip()
