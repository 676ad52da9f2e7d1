"""How records become columns and come back; whatever is read back may have been written by a stranger."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from gnnstab.records import LayerFacts, Measure

TEXT_LIMIT = 100_000
"""Characters kept of any one text; far above every module path, and a bound on what a runaway message can cost."""

JSON_LIMIT = 1_000_000
"""Characters of JSON that are parsed at most."""

WHOLE_LIMIT = 2**53
"""Largest step or count: every whole number up to here is exact as a float64."""

_HINTS = get_type_hints(LayerFacts)
_REQUIRED = ("name", "kind", "position", "attention")


class Quantity(NamedTuple):
    """A stream of full-tier numbers."""

    layer: str
    mode: str
    call: int
    name: str
    head: int


def clean(text: str) -> str:
    """Make a text storable: lone surrogates are written as escapes, overlong text is cut."""
    if type(text) is str and len(text) <= TEXT_LIMIT and text.isascii():
        return text
    text = text[:TEXT_LIMIT]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text


def number_to_column(value: float | None) -> float | str | None:
    """NaN as the text ``nan``, since NULL already says "not known" in the columns of a step."""
    if value is None:
        return None
    number = float(value)
    return number if number == number else "nan"


def column_to_number(value: object) -> float | None:
    """The way back of `number_to_column`; `ValueError` for anything else than a number."""
    if value is None or isinstance(value, (int, float)):
        return None if value is None else float(value)
    if value == "nan":
        return math.nan
    raise ValueError(f"{str(value)[:40]!r} stands where a number belongs")


def whole(value: int) -> int:
    """The value as an integer that SQLite and a float64 can hold; `ValueError` for any other."""
    number = int(value)
    if number != value or abs(number) > WHOLE_LIMIT:
        raise ValueError(f"{value} is no step or count")
    return number


def layer_to_columns(facts: LayerFacts) -> tuple[Any, ...]:
    """The columns of the table layer: name, position and kind to look at, and all facts as one JSON object."""
    return (
        clean(facts.name),
        whole(facts.position),
        clean(facts.kind),
        json.dumps(dataclasses.asdict(facts), default=str),
    )


def facts_from_json(text: str) -> LayerFacts:
    """Facts from JSON; unknown fields are left out, a field of the wrong type raises `ValueError`."""
    data = parse(text)
    if not isinstance(data, dict) or any(name not in data for name in _REQUIRED):
        raise ValueError("the facts of a layer are incomplete")
    return LayerFacts(**{name: _field(name, data[name]) for name in _HINTS if name in data})


def _field(name: str, value: Any) -> Any:
    if name == "options":
        if isinstance(value, dict) and all(isinstance(v, (bool, int, float, str, NoneType)) for v in value.values()):
            return value
        raise ValueError("the options of a layer are no plain values")
    allowed = get_args(_HINTS[name]) or (_HINTS[name],)
    if value is None and type(None) in allowed:
        return None
    if name == "in_channels":
        if isinstance(value, list) and len(value) == 2 and all(type(width) is int for width in value):
            return (value[0], value[1])
    elif name == "beside":
        if isinstance(value, list) and all(type(layer) is str for layer in value):
            return tuple(value)
    elif float in allowed and type(value) in (int, float):
        return float(value)
    elif type(value) in allowed:
        return value
    raise ValueError(f"the fact {name} of a layer has the wrong type")


Fields = Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]
"""Columns of a table in order, each with how the field of a record becomes one and how it comes back.

What comes back raises `ValueError` when the column does not hold what it should.
"""


def to_columns(fields: Fields, record: Any) -> tuple[Any, ...]:
    """The columns of one record."""
    return tuple([write(getattr(record, name)) for name, (write, _) in fields.items()])


def from_columns(fields: Fields, row: Sequence[Any]) -> dict[str, Any]:
    """Field → value of one row; `ValueError` when a column does not hold what it should."""
    return {name: read(value) for (name, (_, read)), value in zip(fields.items(), row, strict=True)}


def measure_from_columns(row: tuple[Any, ...], rank: int, quantities: Mapping[int, Quantity]) -> tuple[int, Measure]:
    """Number and measure of one row; raises `ValueError` when a column does not hold what it should."""
    order, step, quantity, value, detail = row
    known = quantities.get(quantity)
    if known is not None and detail is None and type(value) is float and type(order) is type(step) is int:
        return order, _plain(Measure, (step, *known, value, "", rank))  # Nearly all of millions of rows.
    if known is None:
        raise ValueError(f"the quantity {str(quantity)[:40]!r} of a measure is not listed")
    return integer(order), Measure(integer(step), *known, _number(value), "" if detail is None else _text(detail), rank)


_plain = tuple.__new__
"""A named tuple without the call of its own constructor."""


def _detail(detail: Mapping[str, Any]) -> str:
    # What JSON does not know: arrays and numpy numbers become lists and numbers, the rest its text.
    text = json.dumps(dict(detail), default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))
    return text if len(text) <= TEXT_LIMIT else json.dumps({"cut": f"a detail of {len(text)} characters was left out"})


def parse(text: object) -> Any:
    """JSON of a stranger: `ValueError` for anything that is no JSON, too long or too deeply nested."""
    if not isinstance(text, str) or len(text) > JSON_LIMIT:
        raise ValueError("no JSON text, or a longer one than gnnstab writes")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def integer(value: object) -> int:
    """The value itself when it is an integer, else `ValueError`."""
    if not isinstance(value, int):
        raise ValueError(f"{str(value)[:40]!r} stands where an integer belongs")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} stands where a text belongs")
    return value


def _integers(text: object) -> tuple[int, ...]:
    values = parse(text)
    if not isinstance(values, list):
        raise ValueError("a list of ids is damaged")
    return tuple(integer(value) for value in values)


def _object(text: object) -> dict[str, Any]:
    value = parse(text)
    if not isinstance(value, dict):
        raise ValueError("the detail of an event is no JSON object")
    return value


def _number(value: object) -> float:
    """A number where one is always known, so that NULL is NaN."""
    known = column_to_number(value)
    return math.nan if known is None else known


TEXT = (clean, _text)
TEXT_OR_NULL = (
    lambda text: None if text is None else clean(text),
    lambda text: None if text is None else _text(text),
)
WHOLE = (whole, integer)
INTEGER = (int, integer)
IDS = (lambda ids: json.dumps([int(i) for i in ids]), _integers)
NUMBER = (number_to_column, column_to_number)

SERIES: Fields = {"layer": TEXT, "mode": TEXT, "call": INTEGER, "site": TEXT}
QUANTITY: Fields = {"layer": TEXT, "mode": TEXT, "call": INTEGER, "name": TEXT, "head": INTEGER}
BLIND: Fields = {"layer": TEXT, "site": TEXT, "reason": TEXT}
STEP: Fields = {
    "step": WHOLE,
    "time": (number_to_column, _number),
    **dict.fromkeys(("loss", "lr", "scale", "grad_norm"), NUMBER),
    "skipped": (int, lambda value: bool(integer(value))),
}
"""Without the level, which stands behind the step."""

EVENT: Fields = {
    "step": WHOLE,
    "kind": TEXT,
    "layer": TEXT_OR_NULL,
    "mode": TEXT,
    "call": INTEGER,
    **dict.fromkeys(("stage", "origin"), TEXT_OR_NULL),
    **dict.fromkeys(("nodes", "edges", "heads"), IDS),
    "message": TEXT,
    "detail": (_detail, _object),
}


def event_from_columns(row: Sequence[Any]) -> tuple[dict[str, Any], list[str]]:
    """Field → value of one event, and the names of the fields that cannot be read; without its kind it is none.

    An event says that something happened, which is true however little is left of it: a ``said`` in its detail tells.
    """
    fields: dict[str, Any] = {"step": 0}
    bad = []
    for (name, (_, read)), value in zip(EVENT.items(), row, strict=True):
        try:
            fields[name] = read(value)
        except (ValueError, TypeError):
            bad.append(name)
    if bad:
        fields["detail"] = {
            **fields.get("detail", {}),
            "said": f"details of the event cannot be read: {', '.join(bad)}",
        }
    return fields, bad
