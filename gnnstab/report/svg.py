"""Small building blocks of inline SVG: escaped tags, axes that take data to pixels, paths."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from markupsafe import Markup, escape

from gnnstab.records import SIGNALS
from gnnstab.report.escape import visible
from gnnstab.report.evidence import Array
from gnnstab.report.page_text import short


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """One element; text children and attribute values are escaped, ``None`` attributes left out.

    An attribute's trailing underscore is dropped and the others become hyphens: ``class_``, ``text_anchor``.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"')
    if not children:
        return Markup("".join(parts) + "/>")
    inner = "".join(child if isinstance(child, Markup) else str(_text(child)) for child in children)
    return Markup("".join(parts) + f">{inner}</{name}>")


def join(parts: Iterable[Markup]) -> Markup:
    """Elements side by side."""
    return Markup("").join(parts)


def drawing(width: float, height: float, *children: Markup, label: str, class_: str = "chart") -> Markup:
    """A whole picture with the sentence that a screen reader reads in its place."""
    # Not the attribute viewBox through `tag`: SVG is case-sensitive there and has no hyphen.
    inner = Markup("").join(children)
    return Markup(
        '<svg class="{}" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(class_, pixel(width), pixel(height), pixel(width), pixel(height), visible(label), inner)


def pixel(value: float) -> str:
    """A coordinate with at most one decimal: enough for the eye, short on the wire."""
    return f"{value:.1f}".removesuffix(".0")


def _text(value: object) -> Markup:
    return Markup(pixel(value)) if isinstance(value, float) else _escaped(str(value))


@lru_cache(maxsize=4096)
def _escaped(text: str) -> Markup:
    """Escaping is most of the work of drawing and nearly always of the same few class names."""
    return escape(visible(text))


_ZERO_ROOM = 0.2
"""Share of a logarithmic axis below its smallest number that is left to an exact 0."""

_LARGEST = 1e300
"""Values beyond it are drawn at it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Takes numbers to pixels: linear, logarithmic, or logarithmic on both sides of zero."""

    low: float
    high: float
    start: float
    """Pixel of ``low``."""

    stop: float
    """Pixel of ``high``."""

    kind: str = "linear"
    """``linear``, ``log`` or ``symlog`` (linear within ±1)."""

    zero: bool = False
    """A logarithmic axis that has a place of its own for 0, at ``start``, apart from all other numbers."""

    def __call__(self, value: float) -> float:
        """The pixel of ``value``, held inside the axis."""
        if self.zero and value <= 0:
            return self.start
        low, high = self._warp(self.low), self._warp(self.high)
        share = min(max((self._warp(value) - low) / (high - low) if high > low else 0.5, 0.0), 1.0)
        floor = _ZERO_ROOM if self.zero else 0.0
        return self.start + (floor + (1 - floor) * share) * (self.stop - self.start)

    def _warp(self, value: float) -> float:
        if self.kind == "log":
            return math.log10(max(value, 1e-300))
        if self.kind == "symlog":
            return math.copysign(math.log10(1 + abs(value)), value)
        return value

    def ticks(self, most: int = 5) -> tuple[float, ...]:
        """Round numbers inside the axis, at most about ``most`` of them."""
        if self.kind == "linear":
            return _linear_ticks(self.low, self.high, most)
        if self.kind == "log":
            return (*((0.0,) if self.zero else ()), *_decades(self.low, self.high, most - self.zero))
        positive = _decades(1.0, max(self.high, 1.0), max(2, most // 2)) if self.high > 1 else ()
        negative = _decades(1.0, max(-self.low, 1.0), max(2, most // 2)) if self.low < -1 else ()
        return (*sorted(-t for t in negative if t > 1), 0.0, *(t for t in positive if t > 1))

    def labels(self, most: int = 5) -> tuple[tuple[float, str], ...]:
        """The ticks with their texts, all in one style: plain numbers, or powers of ten where one of them needs it."""
        ticks = self.ticks(most)
        powers = self.kind != "linear" and any(t and not 1e-2 <= abs(t) < 1e4 for t in ticks)
        return tuple((t, _power(t) if powers else short(t)) for t in ticks)


def _linear_ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    if not high > low:
        return (low,)
    raw = (high - low) / max(most - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return tuple(round(step * k, 12) for k in range(first, math.floor(high / step + 1e-9) + 1))


def _decades(low: float, high: float, most: int) -> tuple[float, ...]:
    """Powers of ten, with as many of their parts in between as there is room for."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for parts in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**k for k in range(first, last + 1) for m in parts]
        inside = tuple(t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9))
        if len(inside) < 2:
            return _linear_ticks(low, high, most)  # too narrow for round steps
        if len(inside) <= most:
            return inside
    return inside[:: math.ceil(len(inside) / most)]


def axis_for(values: Iterable[float], start: float, stop: float, *, kind: str = "linear", room: float = 0.06) -> Axis:
    """An axis around the finite ``values`` with a little room; a sane one when there are none."""
    array = np.fromiter(values, dtype=np.float64)
    zero = kind == "log" and bool((array == 0).any())
    # Room around the largest float would not be finite any more.
    finite = np.clip(array[np.isfinite(array)], -_LARGEST, _LARGEST)
    if kind == "log":
        finite = finite[finite > 0]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.1, 10.0)
        # A whole decade at least, so that a flat profile looks flat.
        middle = math.sqrt(low) * math.sqrt(high)
        return Axis(min(low / 1.3, middle / 3.2), max(high * 1.3, middle * 3.2), start, stop, kind, zero)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if high == low:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    pad = (high - low) * room
    return Axis(low - pad, high + pad, start, stop, kind)


def scale_of(name: str) -> str:
    """``linear`` for shares and for numbers that are logarithms already, ``log`` for sizes, ``symlog`` for scores."""
    kind = SIGNALS[name]
    return "linear" if kind.is_share else kind.axis


def is_share(name: str) -> bool:
    """True for a signal between 0 and 1: its axis always spans both. False for a stranger."""
    return name in SIGNALS and SIGNALS[name].is_share


def axis_of(name: str, values: Iterable[float], start: float, stop: float, *, linear: bool = False) -> Axis:
    """The axis that a signal is drawn on, from pixel ``start`` to ``stop``; ``linear`` where no logarithm exists."""
    if is_share(name):
        return Axis(0.0, 1.0, start, stop)
    return axis_for(values, start, stop, kind="linear" if linear or name not in SIGNALS else scale_of(name))


def path(xs: Iterable[float], ys: Iterable[float]) -> str:
    """Path data through points, in steps from point to point since those are short; a NaN in ``ys`` breaks the line."""
    parts: list[str] = []
    here: tuple[int, int] | None = None
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            here = None
            continue
        # Whole tenths, so that the rounding of one step is made good by the next.
        at = (round(10 * x), round(10 * y))
        command, (dx, dy) = ("M", at) if here is None else ("l", (at[0] - here[0], at[1] - here[1]))
        parts.append(f"{command}{dx / 10:g} {dy / 10:g}")
        here = at
    return "".join(parts)


def rules(across: Iterable[float], start: float, stop: float, class_: str, *, upright: bool = False) -> Markup:
    """Parallel straight lines at ``across`` from ``start`` to ``stop`` as one element."""
    first, last = pixel(start), pixel(stop)
    lines = (f"M{pixel(p)} {first}V{last}" if upright else f"M{first} {pixel(p)}H{last}" for p in across)
    return tag("path", d="".join(lines), class_=class_)


def line_through(axis_x: Axis, axis_y: Axis, xs: Array, ys: Array, class_: str) -> Markup:
    """A polyline in data coordinates; a lone point between gaps becomes a dot so that it is seen.

    On an axis with a place for 0 the line does not lead there: how far 0 lies below has no answer. It is said to be exact.
    """
    places = [axis_x(float(x)) for x in xs]
    parts = [np.where(ys > 0, ys, math.nan), np.where(ys == 0, ys, math.nan)] if axis_y.zero else [ys]
    shapes = []
    for part in parts:
        pixels = [axis_y(float(y)) if math.isfinite(y) else math.nan for y in part]
        if data := path(places, pixels):
            shapes.append(tag("path", d=data, class_=class_))
        there = [False, *map(math.isfinite, pixels), False]
        for i, (x, y) in enumerate(zip(places, pixels, strict=True)):
            if there[i : i + 3] == [False, True, False]:
                shapes.append(tag("circle", cx=x, cy=y, r=2, class_=f"{class_} dot"))
    if axis_y.zero and (ys == 0).any():
        first = places[int(np.argmax(ys == 0))]
        shapes.append(label("exactly 0", first + 7, axis_y.start - 5, "value", "start"))
    return join(shapes)


def label(text: str, x: float, y: float, class_: str = "tick", anchor: str | None = None) -> Markup:
    """A piece of text; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return tag("text", text, x=x, y=y, class_=class_, text_anchor=anchor)


def _power(value: float) -> str:
    """``10⁻⁴``, ``5·10⁴``, ``−10³``; what lies between 1 and 100 as it is."""
    exponent = math.floor(math.log10(abs(value)) + 1e-9) if value else 0
    if exponent in (0, 1):
        return short(value)
    mantissa = abs(value) / 10.0**exponent
    factor = "" if math.isclose(mantissa, 1.0) else f"{mantissa:.3g}·"
    return f"{'−' if value < 0 else ''}{factor}10{str(exponent).translate(_SUPERSCRIPT)}"


_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
