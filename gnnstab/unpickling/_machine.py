"""Runs the operations of a pickle that a checkpoint needs, without importing, calling or hashing anything of the file.

Python's own unpickler does what the file says. This one knows the operations that `pickle` writes at the protocols 2 to 5
and gives each its one harmless meaning: containers are built, everything else stays a description (`values`). Every
operation costs time and memory in proportion to the bytes that it has in the file, or is paid from a budget.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

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
        self.data, self.at = data, at
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

    def run(self) -> Any:
        """The value of the pickle; `at` is then the byte behind it.

        Raises `Damaged` or `NeedsCode`.
        """
        data = self.data
        try:
            while True:
                code = data[self.at]
                self.at += 1
                if code == 0x2E:
                    return self.stack.pop()
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise Damaged(f"operation 0x{code:02x} at byte {self.at - 1} stands in no checkpoint")
                operation(self)
        except (Damaged, NeedsCode):
            raise
        except (IndexError, KeyError, struct.error):
            raise Damaged(f"the pickle breaks off or is out of order at byte {min(self.at, len(data))}") from None
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise Damaged(f"at byte {self.at}: {printable(str(error), 80)}") from None

    def spend(self, size: int) -> None:
        """Account for work that a few bytes of the file ask for again and again."""
        self.made += size
        if self.made > max(4 * len(self.data), 64 * 2**20):
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

    def take(self, size: int) -> bytes:
        """The next bytes; raises `IndexError` when there are fewer."""
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise IndexError
        self.at += size
        return found

    def line(self) -> str:
        """Text up to the end of the line."""
        end = self.data.index(b"\n", self.at, self.at + 1000)
        found = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return found

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
        if kind in _PLAIN_KEYS or (kind is int and -(2**60) < key < 2**60) or id(key) in self.tensors:
            return  # Tensors hash by identity; an optimizer keeps its state under them.
        if kind is not int and not (kind is tuple and depth < 2 and len(key) <= LONGEST_KEY):
            raise Damaged(f"a {printable(kind.__name__, 40)} is a key, which no checkpoint has")
        self.loose_keys += 1
        if self.loose_keys > MOST_LOOSE_KEYS:
            raise Damaged(f"more than {MOST_LOOSE_KEYS} keys are tuples or integers without end")
        for part in key if kind is tuple else ():
            self.check_key(part, depth + 1)


def _number(form: str) -> Callable[[Machine], Any]:
    packed = struct.Struct(form)

    def read(machine: Machine) -> Any:
        (value,) = packed.unpack_from(machine.data, machine.at)
        machine.at += packed.size
        return value

    return read


_U1, _U2, _I4, _U4, _U8, _F8 = (_number(form) for form in ("<B", "<H", "<i", "<I", "<Q", ">d"))


def _push(read: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        value = read(machine)  # First, since it may bring back the stack below a mark.
        machine.stack.append(value)

    return operation


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(value)


def _empty(kind: Callable[[], Any]) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        machine.count(1)
        machine.stack.append(kind())

    return operation


def _text(length: Callable[[Machine], int], errors: str = "surrogatepass") -> Callable[[Machine], None]:
    return _push(lambda machine: machine.take(length(machine)).decode("utf-8", errors))


def _bytes(length: Callable[[Machine], int], kind: Callable[[bytes], Any] = bytes) -> Callable[[Machine], None]:
    return _push(lambda machine: kind(machine.take(length(machine))))


def _long(length: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        size = length(machine)
        if not 0 <= size <= LONGEST_INTEGER:
            raise Damaged(f"an integer has {size} bytes")
        machine.stack.append(int.from_bytes(machine.take(size), "little", signed=True))

    return operation


def _mark(machine: Machine) -> None:
    if len(machine.below) >= DEEPEST:
        raise Damaged(f"has more than {DEEPEST} containers inside each other")
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine: Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _last(count: int) -> Callable[[Machine], list[Any]]:
    """The topmost items of the stack, which lose their place on it."""

    def take(machine: Machine) -> list[Any]:
        return [machine.stack.pop() for _ in range(count)][::-1]

    return take


def _tuple(machine: Machine, items: list[Any]) -> None:
    machine.count(PART)
    machine.stack.append(tuple(items))


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Record):
        target.sequence.extend(items)
    elif type(target) in (list, deque):
        target.extend(items)
    else:
        raise Damaged(f"items are appended to a {printable(type(target).__name__, 40)}")


def _add_items(machine: Machine) -> None:
    items = machine.checked_since_mark()
    target = machine.stack[-1]
    if type(target) is not set:
        raise Damaged(f"items are added to a {printable(type(target).__name__, 40)}")
    target.update(items)


def _frozen_set(machine: Machine) -> None:
    machine.count(1)
    items = machine.checked_since_mark()
    machine.stack.append(frozenset(items))


def _set(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Record):
        target = target.mapping
    elif type(target) not in (dict, OrderedDict, defaultdict):
        raise Damaged(f"keys are set on a {printable(type(target).__name__, 40)}")
    if len(items) % 2:
        raise Damaged("a key has no value")
    for at in range(0, len(items), 2):
        machine.check_key(items[at])
        target[items[at]] = items[at + 1]


def _with(
    items: Callable[[Machine], list[Any]], use: Callable[[Machine, list[Any]], None]
) -> Callable[[Machine], None]:
    return lambda machine: use(machine, items(machine))


def _put(place: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def operation(machine: Machine) -> None:
        machine.memo[place(machine)] = machine.stack[-1]

    return operation


def _get(place: Callable[[Machine], int]) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(machine.memo[place(machine)])


def _memoize(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _global(machine: Machine) -> None:
    module = machine.line()
    machine.stack.append(machine.named(f"{module}.{machine.line()}"))


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    if type(name) is not str or type(module) is not str or len(name) + len(module) > 1000:
        raise Damaged("a name is no text")
    machine.stack.append(machine.named(f"{module}.{name}"))


def _reduce(machine: Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(arguments) is not tuple:
        raise Damaged("a call has no arguments")
    machine.stack.append(call(machine, function, arguments))


def _new_object(machine: Machine) -> None:
    arguments, kind = machine.stack.pop(), machine.stack.pop()
    if type(arguments) is not tuple or type(kind) is not Named:
        raise Damaged("an object has no class")
    machine.stack.append(instance(machine, kind.name, arguments))


def _new_object_with_keywords(machine: Machine) -> None:
    keywords = machine.stack.pop()
    _new_object(machine)
    if type(keywords) is dict and isinstance(machine.stack[-1], Record):
        machine.stack[-1].attributes = keywords


def _build(machine: Machine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Named):
        raise NeedsCode(target.name)
    if not isinstance(target, Record):
        return  # Attributes of a tensor or a dict, such as `_metadata` of a state dict: nothing is read from them.
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    if not all(part is None or type(part) in (dict, OrderedDict) for part in parts):
        target.state = state
        return
    for part in filter(None, parts):
        machine.spend(64 * (len(target.attributes) + len(part)) if target.attributes else 0)
        target.attributes = {**target.attributes, **part} if target.attributes else part


_PYTHON_2 = "surrogateescape"
"""How the bytes of a ``str`` of Python 2 are decoded."""

_OPERATIONS: dict[int, Callable[[Machine], None]] = {
    ord("N"): _constant(None), 0x88: _constant(True), 0x89: _constant(False),
    ord("K"): _push(_U1), ord("M"): _push(_U2), ord("J"): _push(_I4), ord("G"): _push(_F8),
    0x8A: _long(_U1), 0x8B: _long(_I4),
    ord("X"): _text(_U4), 0x8C: _text(_U1), 0x8D: _text(_U8),
    ord("U"): _text(_U1, _PYTHON_2), ord("T"): _text(_I4, _PYTHON_2),
    ord("B"): _bytes(_U4), ord("C"): _bytes(_U1), 0x8E: _bytes(_U8), 0x96: _bytes(_U8, bytearray),
    ord(")"): _constant(()), 0x85: _with(_last(1), _tuple), 0x86: _with(_last(2), _tuple),
    0x87: _with(_last(3), _tuple), ord("t"): _with(Machine.since_mark, _tuple),
    ord("]"): _empty(list), ord("}"): _empty(dict), 0x8F: _empty(set),
    0x91: _frozen_set,
    ord("("): _mark, ord("0"): _pop, ord("1"): lambda machine: (machine.since_mark(), None)[1],
    ord("2"): _push(lambda machine: machine.stack[-1]),
    ord("a"): _with(_last(1), _extend), ord("e"): _with(Machine.since_mark, _extend), 0x90: _add_items,
    ord("s"): _with(_last(2), _set), ord("u"): _with(Machine.since_mark, _set),
    ord("q"): _put(_U1), ord("r"): _put(_U4), 0x94: _memoize, ord("h"): _get(_U1), ord("j"): _get(_U4),
    ord("c"): _global, 0x93: _stack_global, ord("R"): _reduce, 0x81: _new_object,
    0x92: _new_object_with_keywords, ord("b"): _build, ord("Q"): _push(lambda machine: reference(machine, machine.stack.pop())),
    0x80: lambda machine: (_U1(machine), None)[1], 0x95: lambda machine: (_U8(machine), None)[1],
}  # fmt: skip
"""Code → what it does."""
