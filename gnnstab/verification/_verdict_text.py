"""Verdicts as text: what fits a screen, or everything."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence

from gnnstab.characters import counted
from gnnstab.fixes.text_edits import changed_lines
from gnnstab.verification._verdict import Verdict

MOST_LINES = 15
_LABEL = 14
"""Columns of the verdict at the left."""


def verdicts_text(verdicts: Sequence[Verdict], *, width: int = 80, verbose: bool = False) -> str:
    """One entry per fix and the code of the best; ``verbose`` shows every number and the code of every fix."""
    if verbose:
        return "\n\n".join([*map(_whole, verdicts), "\n".join(_once(verdicts))]).rstrip()
    lines = [line for verdict in verdicts[:_MOST_FIXES] for line in _entry(verdict, len(verdicts), width)]
    rates = dict.fromkeys(verdict.rate for verdict in verdicts if verdict.rate)
    more = f"{len(verdicts) - _MOST_FIXES} more and " if len(verdicts) > _MOST_FIXES else ""
    trained = [f"Trained {', '.join(rates)}"] if rates else []
    lines += textwrap.wrap("; ".join([*trained, f"-v shows {more}what was compared, and every number"]), width)
    return "\n".join([*lines, *_code(verdicts, MOST_LINES - len(lines))])


_MOST_FIXES = 10


def number(value: float | None) -> str:
    """Three digits; ``–`` for what was not measured."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3g}"


def change(interval: tuple[float, float]) -> str:
    """An interval of ln(loss with / loss without) in per cent; a point where chance plays no part."""
    low, high = (number(math.expm1(bound) * 100) for bound in interval)
    return f"{low} %" if low == high else f"{low} % … {high} %"


def _name(v: Verdict) -> str:
    options = ", ".join(f"{k}={value}" for k, value in v.options.items())
    return f"{v.fix}{f' ({options})' if options else ''}"


def _entry(v: Verdict, of: int, width: int) -> Iterator[str]:
    """The verdict with its numbers, and below it the whole reason where the fixes are few."""
    moved, why = "", v.reason
    if v.before is not None and v.after is not None:
        moved = f": {v.signal}{f' at {v.layer}' if v.layer else ''} {number(v.before)} → {number(v.after)}"
    if v.loss_before is not None and v.loss_after is not None:
        task = " of a synthetic task" if "a synthetic task" in v.objective else ""
        why = f"loss{task} {number(v.loss_before)} → {number(v.loss_after)}; {why}"
    indent = " " * _LABEL
    first = f"{v.verdict:<{_LABEL}}{_name(v)}{moved}"
    yield from textwrap.wrap(first, width, subsequent_indent=indent) if of <= 5 else [fit(first, width)]
    if of <= 5:
        yield from textwrap.wrap(why, width, initial_indent=indent, subsequent_indent=indent)


def _code(verdicts: Sequence[Verdict], room: int) -> Iterator[str]:
    """The change of the first confirmed fix, or of the only one; how to see it where it has no room."""
    best = next((v for v in verdicts if v.verdict == "confirmed"), verdicts[0] if len(verdicts) == 1 else None)
    if best is None or not best.change:
        return
    code = best.change.splitlines()
    if len(code) >= room:
        code = changed_lines(best.change)
    if not 0 < len(code) < room:
        yield f"{best.fix}: -v shows its {len(best.change.splitlines())} lines of code"
        return
    yield f"{best.fix}:"
    yield from (f"  {line}" for line in code)


def _once(verdicts: Sequence[Verdict]) -> list[str]:
    """What was compared and trained, each said once for all fixes that share it."""
    said: dict[str, list[str]] = {}
    for verdict in verdicts:
        for text in (verdict.arms, verdict.objective):
            if text:
                said.setdefault(text, []).append(verdict.fix)
    return [
        text if len(fixes) == len(verdicts) else f"{', '.join(dict.fromkeys(fixes))}: {text}"
        for text, fixes in said.items()
        if len(said) <= 4 or len(fixes) > 1
    ]


def _whole(v: Verdict) -> str:
    lines = [f"{_name(v)}: {v.verdict}", f"  {v.because}"]
    if v.before is not None and v.after is not None:
        where = f" of {v.layer}" if v.layer else ""
        limit = f", limit {number(v.threshold)}" if v.threshold is not None else ""
        lines.append(f"  {v.signal}{where}: {number(v.before)} → {number(v.after)}{limit} ({counted(v.seeds, 'seed')})")
    if v.loss_before is not None and v.loss_after is not None:
        by = f" (change {change(v.loss_change)})" if v.loss_change is not None else ""
        lines.append(f"  loss {number(v.loss_before)} → {number(v.loss_after)}{by}")
    if v.unseen_change is not None:
        best = f", at its best {change(v.best_change)}" if v.best_change is not None else ""
        lines.append(f"  loss on what the training has not seen: change {change(v.unseen_change)}{best}")
    if v.step_time is not None:
        lines.append(f"  a step takes {v.step_time:.2f} × as long")
    return "\n".join([*lines, *(f"    {line}" for line in v.change.splitlines())])


def fit(line: str, width: int) -> str:
    """A line of at most so many columns."""
    return line if len(line) <= width else f"{line[: width - 2].rstrip()} …"
