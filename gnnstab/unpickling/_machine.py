"""Runs the operations of a pickle that a checkpoint needs, without importing, calling or hashing anything of the file.

Python's own unpickler does what the file says. This one takes the operations that `pickle` writes at the protocols 2 to 5,
their arguments read by `pickletools`, and gives each its one harmless meaning: containers are built, everything else stays
a description (`values`). Every operation costs time and memory in proportion to the bytes that it has in the file, or is
paid from a budget.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

from gnnstab.errors import printable
from gnnstab.unpickling._calls import call, instance
from gnnstab.unpickling._dtypes import ITEM_SIZES
from gnnstab.unpickling._tensors import reference
from gnnstab.unpickling._values import Damaged, Make, Named, NeedsCode, Record, Storages, StoredTensor

MOST_CONTAINERS = 1_000_000
"""Empty lists, dicts and sets, which need one byte in a file and a hundred in memory; a record has three."""

PART = 0.2
"""Paid for a tuple in empty lists; every tensor has four."""

DEEPEST = 10_000
"""Marks that are open at a time."""

PLAIN, COMPOSED = 256, 4096
"""Paid for a tensor besides its entries, and for one that torch puts together out of others."""

LONGEST_INTEGER = 256
"""Bytes of one integer."""

MOST_LOOSE_KEYS = 10_000
"""Keys whose hashes a file could choose to be equal: tuples and integers beyond 60 bits."""

LONGEST_KEY = 16
"""Entries of a tuple that is a key."""

_PLAIN_KEYS = frozenset({str, bool, float, type(None), bytes, Named, Record})
"""Types of keys that hash in constant time, with a hash that no file can choose."""


class Machine:
    """One pickle being read."""

    def __init__(
        self, data: bytes, at: int, storages: Storages, make: Make, budget: int, records: Callable[[str], bool]
    ):
        """``budget`` is the number of bytes that tensors may declare; ``records`` says which classes may become a `Record`."""
        self.stream, self.size = io.BytesIO(data), len(data)
        self.stream.seek(at)
        self.storages, self.make, self.records = storages, make, records
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.budget = self.left = budget
        self.made = 0
        self.containers, self.loose_keys = 0.0, 0
        self.names: dict[str, Named] = {}
        self.tensors: dict[int, tuple[Any, StoredTensor]] = {}
        self.views: set[tuple[object, ...]] = set()
        self.dropped: list[Any] = []

    def run(self) -> Any:
        """The value of the pickle; `at` is then the byte behind it.

        Raises `Damaged` or `NeedsCode`.
        """
        try:
            while (code := self.stream.read(1)) != b".":
                if code and code not in _OPERATIONS:
                    raise Damaged(f"operation 0x{code.hex()} at byte {self.at - 1} stands in no checkpoint")
                read = _READERS.get(code)
                _OPERATIONS[code](self, read(self.stream) if read else None)
            return self.stack.pop()
        except (Damaged, NeedsCode):
            raise
        except (IndexError, KeyError):
            raise Damaged(f"the pickle breaks off or is out of order at byte {self.at}") from None
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise Damaged(f"at byte {self.at}: {printable(str(error), 80)}") from None

    @property
    def at(self) -> int:
        """Place of the next byte."""
        return self.stream.tell()

    def spend(self, size: int) -> None:
        """Account for work that a few bytes of the file ask for again and again."""
        self.made += size
        if self.made > max(4 * self.size, 64 * 2**20):
            raise Damaged("its calls can fill the memory")

    def described(self, value: Any) -> StoredTensor:
        """The description of what `make` made of a tensor."""
        found = self.tensors.get(id(value))
        if found is None:
            raise Damaged(f"a {printable(type(value).__name__, 40)} stands where a tensor belongs")
        return found[1]

    def tensor(self, stored: StoredTensor) -> Any:
        """Hand a tensor over, once it is paid for."""
        view = (stored.storage, stored.dtype, stored.offset, stored.shape, stored.stride)
        if stored.storage is not None and view not in self.views:
            self.views.add(view)
            self._declare(stored)
        self.spend(COMPOSED if stored.parts else PLAIN)
        for part in stored.parts:
            # Torch copies or checks the parts of every tensor anew, also those that another one has already.
            if id(part) in self.tensors:
                self._declare(self.described(part))
            elif type(part) is list:
                self.spend(32 * len(part))
        made = self.make(stored)
        # The table goes by identity, so what is in it is kept: no other object may get the identity of one that is gone.
        self.tensors[id(made)] = made, stored
        return made

    def lost(self) -> list[Any]:
        """The tensors in what was `dropped`: attributes of tensors and of dicts; and those that are keys."""
        pending, seen, found = list(self.dropped), set[int](), []
        while pending:
            node = pending.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if id(node) in self.tensors:
                found.append(node)
            elif isinstance(node, (list, tuple, set, frozenset)):
                pending.extend(node)
            elif isinstance(node, dict):
                pending += [*node.keys(), *node.values()]
            elif isinstance(node, Record):
                pending += [node.attributes, node.mapping, node.arguments, node.sequence, node.state]
        return found

    def _declare(self, stored: StoredTensor) -> None:
        """Pay for the entries of a tensor."""
        self.left -= math.prod(stored.shape) * ITEM_SIZES[stored.dtype]
        if self.left < 0:
            raise Damaged(
                f"its tensors declare more than {self.budget >> 20} MiB, many times what the file holds; refused "
                "(expanded or overlapping storages)"
            )

    def count(self, containers: float) -> None:
        """Account for containers that need a few bytes of the file."""
        self.containers += containers
        if self.containers > MOST_CONTAINERS:
            raise Damaged(f"has more than {MOST_CONTAINERS} lists and dicts")

    def record(self, name: str, arguments: tuple[Any, ...]) -> Record:
        """A record, whose containers are counted."""
        self.count(3)
        return Record(name, arguments)

    def since_mark(self) -> list[Any]:
        """What was put down since the last mark, which goes with it."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def checked_since_mark(self) -> list[Any]:
        """The same, each fit to be a key."""
        items = self.since_mark()
        for item in items:
            self.check_key(item)
        return items

    def named(self, name: str) -> Named:
        """The one object for a name; two short texts of the file make many long names."""
        if name not in self.names:
            self.spend(100 + len(name))
        return self.names.setdefault(name, Named(name))

    def check_key(self, key: Any, depth: int = 0) -> None:
        """Raise `Damaged` unless hashing this key takes constant time, memory and depth."""
        kind = type(key)
        if kind in _PLAIN_KEYS or (kind is int and -(2**60) < key < 2**60):
            return
        if id(key) in self.tensors:  # Hashed by identity; an optimizer keeps its state under them.
            self.dropped.append(key)
            return
        if kind is not int and not (kind is tuple and depth < 2 and len(key) <= LONGEST_KEY):
            raise Damaged(f"a {printable(kind.__name__, 40)} is a key, which no checkpoint has")
        self.loose_keys += 1
        if self.loose_keys > MOST_LOOSE_KEYS:
            raise Damaged(f"more than {MOST_LOOSE_KEYS} keys are tuples or integers without end")
        for part in key if kind is tuple else ():
            self.check_key(part, depth + 1)


Operation = Callable[[Machine, Any], None]
"""What is done with the machine and the operation's own argument."""


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(value: Any) -> Operation:
    return lambda machine, _: machine.stack.append(value)


def _empty(kind: Callable[[], Any]) -> Operation:
    def operation(machine: Machine, _: None) -> None:
        machine.count(1)
        machine.stack.append(kind())

    return operation


def _python_2_text(machine: Machine, argument: str) -> None:
    machine.stack.append(argument.encode("latin-1").decode("utf-8", "surrogateescape"))


def _long(machine: Machine, argument: int) -> None:
    if (size := argument.bit_length() // 8 + 1) > LONGEST_INTEGER:
        raise Damaged(f"an integer has {size} bytes")
    machine.stack.append(argument)


def _mark(machine: Machine, _: None) -> None:
    if len(machine.below) >= DEEPEST:
        raise Damaged(f"has more than {DEEPEST} containers inside each other")
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine, _: None) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _last(count: int) -> Callable[[Machine], list[Any]]:
    """The topmost items of the stack, which lose their place on it."""
    return lambda machine: [machine.stack.pop() for _ in range(count)][::-1]


def _tuple(machine: Machine, items: list[Any]) -> None:
    machine.count(PART)
    machine.stack.append(tuple(items))


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Record):
        target.sequence.extend(items)
    elif type(target) is list:
        target.extend(items)
    else:
        raise Damaged(f"items are appended to a {printable(type(target).__name__, 40)}")


def _add_items(machine: Machine, _: None) -> None:
    items = machine.checked_since_mark()
    target = machine.stack[-1]
    if type(target) is not set:
        raise Damaged(f"items are added to a {printable(type(target).__name__, 40)}")
    target.update(items)


def _frozen_set(machine: Machine, _: None) -> None:
    machine.count(1)
    items = machine.checked_since_mark()
    machine.stack.append(frozenset(items))


def _set(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Record):
        target = target.mapping
    elif type(target) not in (dict, OrderedDict):
        raise Damaged(f"keys are set on a {printable(type(target).__name__, 40)}")
    if len(items) % 2:
        raise Damaged("a key has no value")
    for at in range(0, len(items), 2):
        machine.check_key(items[at])
        target[items[at]] = items[at + 1]


def _with(items: Callable[[Machine], Any], use: Callable[[Machine, Any], None]) -> Operation:
    return lambda machine, _: use(machine, items(machine))


def _put(machine: Machine, place: int | None) -> None:
    machine.memo[len(machine.memo) if place is None else place] = machine.stack[-1]


def _global(machine: Machine, name: str) -> None:
    machine.stack.append(machine.named(name))


def _stack_global(machine: Machine, _: None) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str or len(name) + len(module) > 1000:
        raise Damaged("a name is no text")
    _global(machine, f"{module}.{name}")


def _reduce(machine: Machine, _: None) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(arguments) is not tuple:
        raise Damaged("a call has no arguments")
    machine.stack.append(call(machine, function, arguments))


def _new_object(machine: Machine, _: None) -> None:
    arguments, kind = machine.stack.pop(), machine.stack.pop()
    if type(arguments) is not tuple or type(kind) is not Named:
        raise Damaged("an object has no class")
    machine.stack.append(instance(machine, kind.name, arguments))


def _new_object_with_keywords(machine: Machine, _: None) -> None:
    keywords = machine.stack.pop()
    _new_object(machine, None)
    if type(keywords) is dict and isinstance(machine.stack[-1], Record):
        machine.stack[-1].attributes = keywords


def _build(machine: Machine, _: None) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Named):
        raise NeedsCode(target.name)
    if not isinstance(target, Record):
        machine.dropped.append(state)  # Attributes of a tensor or a dict, such as `_metadata` of a state dict.
        return
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    if not all(part is None or type(part) in (dict, OrderedDict) for part in parts):
        target.state = state
        return
    for part in filter(None, parts):
        machine.spend(64 * (len(target.attributes) + len(part)) if target.attributes else 0)
        target.attributes = {**target.attributes, **part} if target.attributes else part


def _read_name(stream: IO[bytes]) -> str:
    """Module and name, a line each; the reader of `pickletools` takes no names beyond ASCII."""
    lines = [stream.readline(1000).decode("utf-8") for _ in range(2)]
    if not all(line.endswith("\n") for line in lines):
        raise ValueError("a name has no end")
    return ".".join(line[:-1] for line in lines)


_READERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    **{each.code.encode("latin-1"): each.arg.reader for each in pickletools.opcodes if each.arg is not None},
    b"c": _read_name,
}
"""Code → how the argument is read that follows it; `ValueError` where it breaks off."""

_OPERATIONS: dict[bytes, Operation] = {
    **dict.fromkeys((b"K", b"M", b"J", b"G", b"X", b"\x8c", b"\x8d", b"B", b"C", b"\x8e", b"\x96"), _push),
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False), b")": _constant(()),
    b"\x8a": _long, b"\x8b": _long, b"U": _python_2_text, b"T": _python_2_text,
    b"\x85": _with(_last(1), _tuple), b"\x86": _with(_last(2), _tuple), b"\x87": _with(_last(3), _tuple),
    b"t": _with(Machine.since_mark, _tuple),
    b"]": _empty(list), b"}": _empty(dict), b"\x8f": _empty(set), b"\x91": _frozen_set,
    b"(": _mark, b"0": _pop, b"1": _with(Machine.since_mark, lambda machine, items: None),
    b"2": _with(lambda machine: machine.stack[-1], _push),
    b"a": _with(_last(1), _extend), b"e": _with(Machine.since_mark, _extend), b"\x90": _add_items,
    b"s": _with(_last(2), _set), b"u": _with(Machine.since_mark, _set),
    b"q": _put, b"r": _put, b"\x94": _put,
    **dict.fromkeys((b"h", b"j"), lambda machine, place: machine.stack.append(machine.memo[place])),
    b"c": _global, b"\x93": _stack_global, b"R": _reduce, b"\x81": _new_object, b"\x92": _new_object_with_keywords,
    b"b": _build, b"Q": _with(lambda machine: reference(machine, machine.stack.pop()), _push),
    **dict.fromkeys((b"\x80", b"\x95"), lambda machine, argument: None),
}  # fmt: skip
"""Code → what it does."""
