"""Containers inside each other are freed as they are collected, however deep: nothing that is built frees by calls in C."""

from __future__ import annotations

import gc
import resource
from pathlib import Path

import pytest

from attacks import call, text, written
from forked import Child
from gnnstab.checkpoint import load
from gnnstab.unpickling import guard

LEVELS, STACK = 20_000, 2**19
"""Levels, and bytes that the process may have for its calls: fewer than one call in C for each level would need."""

CONTAINERS = {
    "list": (b"]", b"", b"a"),
    "called list": (call("builtins.list"), b"", b"a"),
    "deque": (call("collections.deque"), b"", b"a"),
    "dict": (b"}", text("k"), b"s"),
    "OrderedDict": (call("collections.OrderedDict"), text("k"), b"s"),
    "defaultdict": (call("collections.defaultdict"), text("k"), b"s"),
    "attributes of an object": (b"cmine\nThing\n)\x81", b"", b"b"),
    "items of an object": (b"cmine\nThing\n)\x81", b"", b"a"),
}
"""Name → the operations that make one, that stand before what it holds, and that put that into it."""


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_cycle_of_nested_containers_is_collected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outermost one stands in the innermost, and only the memo of the reader holds them."""
    monkeypatch.setattr(guard, "available", lambda: False)  # It looks with the collector off.
    make, before, put = CONTAINERS[name]
    nested = make + b"q\x01" + (before + make) * LEVELS + before + b"h\x01" + put * (LEVELS + 1)
    path = written(tmp_path / "x.pt", nested + b"0N")

    def read() -> list[str]:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK, STACK))
        found = load(path)
        gc.collect()
        return list(found.tensors)

    assert Child(read).result() == ["w"]
