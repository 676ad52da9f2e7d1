"""Damages SQLite files by their structure: pages and their headers, rollback journals and write-ahead logs, with right checksums."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

Edit = tuple[float, str, bytes]

VICTIM = "thesis.txt"
"""A file beside the folder of the input; some journals ask SQLite to delete it."""

JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""The first bytes of a rollback journal, and the last bytes of one that names a super-journal."""

NUMBERS = (0, 1, 2, 3, 5, 13, 100, 512, 4096, 65535, 2**16, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
HEADER = ((16, "H"), (18, "B"), (19, "B"), (20, "B"), (21, "B"), *((at, "I") for at in range(24, 100, 4)))
"""Fields of the first page, in the form of `struct`."""


def _rng(edit: Edit) -> random.Random:
    return random.Random(repr(edit))


def _number(rng: random.Random, form: str) -> bytes:
    return struct.pack(f">{form}", rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(form)))


def _page_size(content: bytes) -> int:
    size = int.from_bytes(content[16:18], "big")
    return 65536 if size == 1 else size if size >= 512 else 4096


def in_pages(content: bytes, edits: list[Edit]) -> bytes:
    """Pages swapped, doubled, emptied and appended; fields of the file's, a page's and a cell's header changed."""
    size = _page_size(content)
    pages = [bytearray(content[at : at + size]) for at in range(0, len(content), size)]
    for edit in edits if pages else ():
        rng = _rng(edit)
        a, b = rng.randrange(len(pages)), rng.randrange(len(pages))
        way = rng.randrange(7)
        if way == 0:
            pages[a], pages[b] = pages[b], pages[a]
        elif way == 1:
            pages[a] = bytearray(pages[b])
        elif way == 2:
            pages[rng.choice((a, b))][100 if a == 0 else 0 :] = b"" if rng.random() < 0.1 else bytes(len(pages[a]))
        elif way == 3:
            at, form = rng.choice(HEADER)
            pages[0][at : at + struct.calcsize(form)] = _number(rng, form)
        elif way == 4:
            pages += [bytearray(pages[a]) for _ in range(rng.choice((1, 2, 50)))]
        else:
            _edit_page(pages[a], 100 if a == 0 else 0, len(pages), rng)
    return b"".join(pages)


def _edit_page(page: bytearray, begin: int, count: int, rng: random.Random) -> None:
    """The kind, the number of cells, the child or a pointer of one page, or a page number somewhere inside."""
    way = rng.randrange(5)
    if way == 0:
        page[begin : begin + 1] = rng.choice((b"\2", b"\5", b"\n", b"\r", b"\0"))
    elif way == 1:
        at = begin + rng.choice((1, 3, 5))
        page[at : at + 2] = _number(rng, "H")
    elif way == 2:
        page[begin + 8 : begin + 12] = struct.pack(">I", rng.randint(0, count + 1))
    elif way == 3:
        at = begin + 8 + 2 * rng.randrange(20)
        page[at : at + 2] = rng.choice((page[at + 2 : at + 4], _number(rng, "H")))
    else:
        at = rng.randrange(begin, max(begin + 1, len(page) - 4))
        page[at : at + 4] = struct.pack(">I", rng.randint(0, count + 1))


def super_journal(content: bytes, victim: Path) -> bytes:
    """A journal for the database ``content`` that names ``victim``, which SQLite deletes when it plays the journal back."""
    size = _page_size(content)
    header = JOURNAL + struct.pack(">IIIII", 0, 1, len(content) // size, 512, size)
    return header.ljust(512, b"\0") + _named(victim)


def _named(victim: Path) -> bytes:
    name = os.fsencode(victim)
    return struct.pack(">I", 1) + name + struct.pack(">II", len(name), sum(name)) + JOURNAL


def in_journal(content: bytes, edits: list[Edit], scratch: Path) -> bytes:
    """Fields of the header, the number and the content of page records, a second segment, the name of a super-journal."""
    for edit in edits:
        rng = _rng(edit)
        nonce, sector, size = (int.from_bytes(content[at : at + 4], "big") for at in (12, 20, 24))
        data, way = bytearray(content), rng.randrange(6)
        length = size + 8
        records = max(1, (len(data) - sector) // length) if 0 < sector <= 65536 and 0 < size <= 65536 else 0
        at = sector + rng.choice((0, rng.randrange(records) * length)) if records else 0
        if way == 0:
            field = rng.choice((8, 12, 16, 20, 24))
            data[field : field + 4] = _number(rng, "I")
        elif way == 1:
            data += data[: rng.choice((512, len(data)))]
        elif way == 2:
            # Of the file as it is, or with what the name says broken in one place.
            data += _named(scratch / VICTIM)
            if rng.random() < 0.3:
                data[-rng.randint(1, 20)] ^= 1
        elif way == 3 and records:
            data[at : at + 4] = rng.choice((_number(rng, "I"), struct.pack(">I", rng.randint(1, 20))))
        elif records:
            page = data[at + 4 : at + 4 + size]
            page[: 100 if way == 4 else size] = in_pages(bytes(page), [edit])[: 100 if way == 4 else size]
            page = page[:size].ljust(size, b"\0")
            total = nonce + sum(page[place] for place in range(size - 200, 0, -200))
            data[at + 4 : at + length] = page + struct.pack(">I", total % 2**32)
        content = bytes(data)
    return content


def in_log(content: bytes, edits: list[Edit]) -> bytes:
    """Frames of a write-ahead log changed, doubled, moved and renumbered, with checksums that SQLite accepts."""
    size = int.from_bytes(content[8:12], "big") or 4096
    header = bytearray(content[:32])
    frames = [bytearray(content[at : at + 24 + size]) for at in range(32, len(content) - 23 - size, 24 + size)]
    for edit in edits:
        rng = _rng(edit)
        if not frames:
            break
        at, way = rng.randrange(len(frames)), rng.randrange(6)
        if way == 0:
            field = rng.choice((4, 8, 12, 16, 20))
            header[field : field + 4] = _number(rng, "I")
        elif way == 1:
            field = rng.choice((0, 4))
            frames[at][field : field + 4] = rng.choice((_number(rng, "I"), struct.pack(">I", rng.randint(0, 20))))
        elif way == 2:
            frames[at:at] = [bytearray(frame) for frame in frames[at : at + rng.randint(1, 3)]]
        elif way == 3:
            del frames[at]
        else:
            frames[at][24:] = in_pages(bytes(frames[at][24:]), [edit])[:size].ljust(size, b"\0")
    return _with_checksums(bytes(header), frames)


def _with_checksums(header: bytes, frames: list[bytearray]) -> bytes:
    order = ">" if header[3] & 1 else "<"
    sums = _checksum(header[:24], order, (0, 0))
    parts = [header[:24] + struct.pack(">II", *sums)]
    for frame in frames:
        frame[8:16] = header[16:24]
        sums = _checksum(bytes(frame[:8] + frame[24:]), order, sums)
        frame[16:24] = struct.pack(">II", *sums)
        parts.append(bytes(frame))
    return b"".join(parts)


def _checksum(data: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data[: len(data) // 4 * 4])
    for a, b in zip(words[::2], words[1::2], strict=False):
        first = (first + a + second) & 0xFFFFFFFF
        second = (second + b + first) & 0xFFFFFFFF
    return first, second
