"""Ways to damage a file: its bytes, the values of a JSON, torch or SQLite file, and what belongs together in them."""

from __future__ import annotations

import io
import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data

from seeds import saved
from strangers import rewritten

Edit = tuple[float, str, bytes]
"""Where (0 … 1 of the content), what (one of `EDITS`), with what."""

EDITS = ("overwrite", "insert", "delete", "repeat", "truncate", "zero")


def apply(content: bytes, edits: list[Edit]) -> bytes:
    """The content after these edits."""
    data = bytearray(content)
    for place, what, new in edits:
        at = min(int(place * len(data)), max(len(data) - 1, 0))
        if what == "overwrite":
            data[at : at + len(new)] = new
        elif what == "insert":
            data[at:at] = new
        elif what == "delete":
            del data[at : at + 1 + len(new)]
        elif what == "repeat":
            data[at:at] = data[at : at + 64] * (1 + len(new))
        elif what == "truncate":
            del data[at:]
        else:
            data[at : at + 16] = bytes(len(data[at : at + 16]))
    return bytes(data)


def in_archive(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of the pickle inside a torch archive, packed again with right lengths and checksums."""
    return rewritten(content, lambda name, data: apply(data, edits) if name.endswith("data.pkl") else data)


def in_json(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of the values of a JSON document; bytes that are none are edited as such."""
    try:
        document = json.loads(content)
    except ValueError:
        return apply(content, edits)
    for place, what, new in edits:
        document = _edit_value(document, place, what, random.Random(repr((place, new))))
    text = json.dumps(document)
    for mark, replacement in NOT_FROM_PYTHON.items():
        text = text.replace(f'"{mark}"', replacement)
    return text.encode()


NOT_FROM_PYTHON = {
    "a few": "[" * 60 + "]" * 60,
    "many": "[" * 1200 + "]" * 1200,
    "no end": '{"a":' * 100_000,
    "long": "9" * 5000,
    "huge": "1e999",
    "twice": '{"a": 1, "a": [2], "\\ud800": 3}',
}
"""Values of a JSON document that Python would not write."""


def in_lines(content: bytes, edits: list[Edit]) -> bytes:
    """Lines left out, doubled, moved, joined, indented and made long."""
    lines = content.split(b"\n")
    for edit in edits:
        rng = random.Random(repr(edit))
        at = rng.randrange(len(lines))
        if edit[1] == "delete":
            del lines[at]
        elif edit[1] == "repeat":
            lines[at:at] = lines[at : at + rng.randint(1, 4)] * rng.choice((1, 2, 20))
        elif edit[1] == "insert":
            lines[at] = rng.choice((b" ", b"\t", b"\xc2\x85", b"\xe2\x80\xae", b"[" * 2000, b" " * 100_000)) + lines[at]
        elif edit[1] == "truncate":
            lines[at : at + 2] = [b"".join(lines[at : at + 2])]
        elif edit[1] == "overwrite":
            before, sign, value = lines[at].partition(rng.choice((b"=", b":")))
            lines[at] = (
                before + sign + rng.choice((value[::-1], b" " + value[:500] * 1000, b" " + rng.choice(TEXTS), edit[2]))
            )
        else:
            lines[at], lines[-1 - at] = lines[-1 - at], lines[at]
        lines = lines or [b""]
    return b"\n".join(lines)


TEXTS = (
    b"[" * 20_000,
    b"{a=" * 500,
    b"9" * 5000,
    b"1e999",
    b"nan",
    b"a." * 2000,
    b"(a*)*" * 20 + b"b",
    b"%(x)s",
    b"'\x00'",
    b'"\\ud800"',
)
"""Values of a line."""


def in_header(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of the JSON header of a safetensors file, with its right length."""
    size = int.from_bytes(content[:8], "little")
    header = in_json(content[8 : 8 + size], edits)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def in_values(content: bytes, edits: list[Edit]) -> bytes:
    """Edits of what a torch file holds: other tensors, other names, other nesting; saved as torch saves."""
    value = torch.load(io.BytesIO(content), weights_only=False)
    for place, what, new in edits:
        value = _edit_value(value, place, what, random.Random(repr((place, new))))
    return saved(value)


def _edit_value(value: Any, place: float, what: str, rng: random.Random) -> Any:
    """One place somewhere inside changed."""
    if isinstance(value, Data):
        inside = _edit_value(value.to_dict(), place, what, rng)
        return (
            Data.from_dict(inside) if isinstance(inside, dict) and all(isinstance(k, str) for k in inside) else inside
        )
    if not isinstance(value, (dict, list, tuple)) or not value or rng.random() < 0.02:
        return _odd(value, rng)
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    at = int(place * len(items)) % len(items)
    key, child = items[at]
    if what == "delete":
        del items[at]
    elif what == "insert":
        items.insert(at, (rng.choice((key, "gnn1.lin_key.weight", "x\x1b[0m\n", "", "a." * 50)), _odd(child, rng)))
    elif what == "repeat":
        items[at] = (key, [child] * 3 if rng.random() < 0.5 else {"again": child})
    elif what == "truncate":
        items = items[:at]
    else:
        items[at] = (key, _edit_value(child, rng.random(), what, rng))
    if isinstance(value, dict):
        return dict(items)
    return type(value)(child for _, child in items)


def _odd(value: Any, rng: random.Random) -> Any:
    """Something else in the place of a value."""
    if isinstance(value, torch.Tensor):
        return _odd_tensor(value, rng)
    plain = [v for v in VALUES if not isinstance(v, bytes)]
    return rng.choice([*plain, *NOT_FROM_PYTHON, [value], {"value": value}, [], {}, True, "error", "warning", "1"])


def _odd_tensor(tensor: torch.Tensor, rng: random.Random) -> Any:
    made: list[Callable[[], Any]] = [
        lambda: torch.zeros(0),
        lambda: torch.tensor(float("nan")),
        lambda: torch.full_like(tensor, rng.choice((0, 1, 127))),
        lambda: tensor.float() * rng.choice((1e38, 1e-45, float("inf"), float("nan"), -1e6)),
        lambda: (tensor.real if tensor.is_complex() else tensor).double() * 1e300,
        lambda: tensor.to(rng.choice((torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64))),
        lambda: tensor.reshape(-1),
        lambda: tensor.reshape(*tensor.shape, 1, 1),
        lambda: tensor.t() if tensor.dim() == 2 else tensor[..., :1] if tensor.dim() else tensor,
        lambda: tensor[:1].expand(1000, *tensor.shape[1:]) if tensor.dim() else tensor,
        lambda: torch.cat([tensor.reshape(-1)] * 3),
        lambda: tensor.reshape(-1).to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: torch.tensor([[-1, 99], [5, -(2**40)]]),
        lambda: None,
        lambda: "text",
        lambda: [tensor, tensor],
    ]
    try:
        return rng.choice(made)()
    except RuntimeError:
        return torch.ones(3, 5)


VALUES: tuple[Any, ...] = (
    None,
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    1e308,
    float("inf"),
    "nan",
    "",
    "0",
    "gnn1\x1b[31m\n\u202e",
    "x" * 3000,
    b"\xff\x00\xfe",
    "[" * 5000,
    "[1, 2, 3]",
    '{"a": {"b": [1e999, null, "\\u0000"]}}',
    "9" * 5000,
)


def in_tables(content: bytes, edits: list[Edit], scratch: Path) -> bytes:
    """Edits of an SQLite database through SQL: values of other kinds, lost and doubled rows, triggers and views."""
    path = scratch / "edited.gnnstab"
    path.write_bytes(content)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        tables = [
            row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        for place, what, new in edits:
            chosen = random.Random(repr((place, new)))
            table = tables[int(place * len(tables)) % len(tables)]
            columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
            with_ = chosen.choice(VALUES)
            try:
                _edit_table(connection, table, chosen.choice(columns), what, with_, chosen)
            except (sqlite3.Error, OverflowError):
                continue
    finally:
        connection.close()
    return path.read_bytes()


def _edit_table(
    connection: sqlite3.Connection, table: str, column: str, what: str, value: Any, rng: random.Random
) -> None:
    if what == "overwrite":
        connection.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))
    elif what == "zero":
        connection.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid % 3 = {rng.randrange(3)}', (value,))
    elif what == "insert":
        connection.execute(f'CREATE TRIGGER t{rng.random() * 1e9:.0f} AFTER INSERT ON "{table}" BEGIN SELECT 1; END')
    elif what == "delete":
        connection.execute(f'DELETE FROM "{table}" WHERE "{column}" >= ?', (value,))
    elif what == "repeat":
        connection.execute(f'INSERT INTO "{table}" ("{column}") VALUES (?)', (value,))
    else:
        connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "{column}2"')
