"""Damaged files, many of them: each is read, or refused in one clear line, within a bounded time."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import readers
from damage import EDITS, Edit
from gnnstab.errors import GnnstabError

SECONDS = 10.0
"""For one input; ordinary ones take milliseconds."""

OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The beginning of a file that torch wrote before 1.6."""

edits = st.lists(
    st.tuples(st.floats(0, 1, allow_nan=False), st.sampled_from(EDITS), st.binary(min_size=1, max_size=12)),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", readers.READERS)
def test_files_to_begin_from_are_read(name: str, tmp_path: Path) -> None:
    reader = readers.READERS[name]
    for content in reader.seeds().values():
        readers.attempt(reader, content, tmp_path)


@pytest.mark.parametrize("name", readers.READERS)
def test_damaged_files(name: str) -> None:
    reader = readers.READERS[name]

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(sorted(reader.seeds())), st.integers(0, 7), edits)
    def attempt(seed: str, way: int, changes: list[Edit]) -> None:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scratch:
            content = readers.damaged(reader, seed, way, changes, Path(scratch))
            started = time.process_time()
            with suppress(GnnstabError):
                readers.attempt(reader, content, Path(folder))
            assert time.process_time() - started < SECONDS

    attempt()


@pytest.mark.parametrize("name", readers.READERS)
@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\x80", b"PK", b"SQLite format 3\0", b"{}", b"[]", b"\xff" * 4096, OLD]
)
def test_contents_that_are_something_else(name: str, content: bytes, tmp_path: Path) -> None:
    reader = readers.READERS[name]
    with suppress(GnnstabError):
        readers.attempt(reader, content, tmp_path)


def test_a_fault_is_noticed(tmp_path: Path) -> None:
    """The harness itself fails when a reader does."""

    def broken(path: Path) -> None:
        raise KeyError(path.read_bytes()[0])

    reader = readers.Reader("x", broken, lambda: {"a": b"a"})
    with pytest.raises(KeyError):
        readers.attempt(reader, b"abc", tmp_path)
