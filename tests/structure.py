"""Damages torch files by their structure: the operations of the pickle and the members of the archive, not their bytes.

A byte that is changed at random mostly ends in the first check. Here every part is one that a reader understands, in an
order, a number or a place that no writer has chosen.
"""

from __future__ import annotations

import io
import pickletools
import random
import re
import struct
import zipfile
from collections.abc import Callable

from strangers import repacked

Edit = tuple[float, str, bytes]

NAMES = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_qtensor",
    "torch._utils _rebuild_nested_tensor",
    "torch._utils _rebuild_meta_tensor_no_storage",
    "torch._tensor _rebuild_from_type_v2",
    "torch Size",
    "torch float64",
    "torch sparse_coo",
    "torch.nn.parameter UninitializedParameter",
    "collections OrderedDict",
    "collections Counter",
    "collections deque",
    "builtins set",
    "builtins bytearray",
    "builtins getattr",
    "builtins range",
    "_codecs encode",
    "numpy.core.multiarray scalar",
    "numpy dtype",
    "posix system",
    "builtins eval",
    "mine Thing",
    "torch_geometric.data.data Data",
    "torch_geometric.data.batch DynamicInheritanceGetter",
)
"""Names that the readers know, in the form of a pickle."""

SIMPLE = (
    b"N",
    b"\x88",
    b"K\x00",
    b"K\x02",
    b"J\xff\xff\xff\x7f",
    b"J\x00\x00\x00\x80",
    b")",
    b"]",
    b"}",
    b"\x8f",
    b"(",
)
BINDING = (
    b"R",
    b"\x81",
    b"b",
    b"s",
    b"u",
    b"a",
    b"e",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"0",
    b"1",
    b"2",
    b"Q",
    b"\x90",
    b"\x91",
)


def operations(pickle: bytes) -> list[bytes]:
    """The operations of a pickle, each with its argument, without what comes after it."""
    stream = io.BytesIO(pickle)
    places = [place for _, _, place in pickletools.genops(stream) if place is not None]
    return [pickle[start:end] for start, end in zip(places, [*places[1:], stream.tell()], strict=True)]


def _named(rng: random.Random) -> bytes:
    return b"c" + rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"


def _a_call(rng: random.Random) -> list[bytes]:
    arguments = [rng.choice(SIMPLE[:10]) for _ in range(rng.randint(0, 5))]
    return [_named(rng), b"(", *arguments, b"t", rng.choice((b"R", b"\x81"))]


def _nested(rng: random.Random) -> list[bytes]:
    return [rng.choice((b")", b"K\x01", b"N"))] + [rng.choice((b"\x85", b"]0\x85"))] * rng.choice(
        (*(1, 2, 20, 2000) * 50, 200_000)
    )


def _insert(parts: list[bytes], at: int, rng: random.Random) -> None:
    parts[at:at] = rng.choice(
        (lambda: [rng.choice(SIMPLE)], lambda: [rng.choice(BINDING)], lambda: [_named(rng)], lambda: _a_call(rng))
    )()


def _repeat(parts: list[bytes], at: int, rng: random.Random) -> None:
    parts[at:at] = parts[at : at + rng.randint(1, 40)] * rng.choice((1, 2, 10, 100, 1000))


def _move(parts: list[bytes], at: int, rng: random.Random) -> None:
    piece = parts[at : at + rng.randint(1, 20)]
    other = rng.randrange(len(parts))
    parts[other:other] = piece


def _replace(parts: list[bytes], at: int, rng: random.Random) -> None:
    parts[at] = rng.choice((rng.choice(SIMPLE), rng.choice(BINDING), parts[rng.randrange(len(parts))]))


def _nest_a_key(parts: list[bytes], at: int, rng: random.Random) -> None:
    keys = [place for place, part in enumerate(parts) if part[:1] in (b"X", b"\x8c")]
    place = keys[at % len(keys)] if keys else at
    parts[place : place + 1] = _nested(rng)


def _delete(parts: list[bytes], at: int, rng: random.Random) -> None:
    del parts[at : at + rng.randint(1, 5)]


WAYS: tuple[Callable[[list[bytes], int, random.Random], None], ...] = (
    _insert, _repeat, _move, _replace, _nest_a_key, _delete)  # fmt: skip


def in_operations(content: bytes, edits: list[Edit]) -> bytes:
    """Operations inserted, repeated, moved, replaced and left out; keys nested; the archive packed right again."""

    def changed(pickle: bytes) -> bytes:
        parts = operations(pickle)
        for place, what, new in edits:
            rng = random.Random(repr((place, what, new)))
            if parts:
                rng.choice(WAYS)(parts, int(place * len(parts)) % len(parts), rng)
        return b"".join(parts)[: 20 * 2**20]

    if content.startswith(b"PK"):
        return repacked(content, lambda name, data: [(name, changed(data) if name.endswith("data.pkl") else data)])
    # The format before torch 1.6: five pickles, of which the fourth describes the tensors, and then their storages.
    pickles, at = [], 0
    for _ in range(5):
        pickles.append(b"".join(operations(content[at:])))
        at += len(pickles[-1])
    chosen = 3 if edits[0][0] < 0.8 else int(edits[0][0] * 1000) % 5
    pickles[chosen] = changed(pickles[chosen])
    return b"".join(pickles) + content[at:]


def in_members(content: bytes, edits: list[Edit]) -> bytes:
    """Members of the archive doubled, left out, renamed, emptied, cut and swapped."""
    rng = random.Random(repr(edits))
    names = [member.filename for member in zipfile.ZipFile(io.BytesIO(content)).infolist()]
    chosen = {rng.choice(names): rng.randrange(6) for _ in edits}

    def changed(name: str, data: bytes) -> list[tuple[str, bytes]]:
        way = chosen.get(name)
        if way is None:
            return [(name, data)]
        other = rng.choice(names)
        return [
            [(name, data), (name, b"\x80\x02}.")],
            [],
            [(other, data)],
            [(name, b"")],
            [(name, data[: len(data) // 2])],
            [(name, data), (name.upper(), data), ("x/" + name, data)],
        ][way]

    return repacked(content, changed)


FIELDS = (
    (4, "H"),
    (6, "H"),
    (8, "H"),
    (10, "H"),
    (16, "I"),
    (20, "I"),
    (24, "I"),
    (28, "H"),
    (30, "H"),
    (32, "H"),
    (42, "I"),
)
"""Of an entry in the directory of an archive: versions, flags, method, checksum, sizes, lengths, place."""

NUMBERS = (0, 1, 2, 8, 30, 64, 0x41, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)


def in_directory(content: bytes, edits: list[Edit]) -> bytes:
    """Fields of the archive's directory, and of the members' own headers, changed without anything else to fit them."""
    data = bytearray(content)
    for edit in edits:
        rng = random.Random(repr(edit))
        places = [match.start() for match in re.finditer(rb"PK\x01\x02", data)]
        local = [match.start() for match in re.finditer(rb"PK\x03\x04", data)]
        end = data.rfind(b"PK\x05\x06")
        if not places or not local or end < 0:
            break
        at, form = rng.choice(FIELDS)
        base = rng.choice(places)
        if edit[1] == "zero":
            base, (at, form) = end, rng.choice(((4, "H"), (8, "H"), (10, "H"), (12, "I"), (16, "I"), (20, "H")))
        elif edit[1] == "truncate":
            base, at, form = rng.choice(local), rng.choice((0, 26, 28)), "H"
        near = int.from_bytes(data[base + at : base + at + 4], "little") + rng.randint(-64, 64)
        size = struct.calcsize(form)
        number = rng.choice((*NUMBERS, near, rng.choice(local), len(data) - rng.randint(0, 40)))
        data[base + at : base + at + size] = (number % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(data)
