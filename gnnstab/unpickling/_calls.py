"""What a call in a pickle stands for: the few that build plain values, and records for everything else that has a class."""

from __future__ import annotations

import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gnnstab.errors import printable
from gnnstab.unpickling import _tensors as tensors
from gnnstab.unpickling._values import Damaged, Named, NeedsCode, Record

if TYPE_CHECKING:
    from gnnstab.unpickling._machine import Machine

Call = Callable[["Machine", tuple[Any, ...]], Any]


def call(machine: Machine, function: Any, arguments: tuple[Any, ...]) -> Any:
    """The value of one call.

    Raises `NeedsCode` for a call that is none of `CALLS` and makes no object of a class, `Damaged` for wrong arguments.
    """
    if type(function) is Record and function.name in _GETTERS:
        return _batch(machine, arguments)
    if type(function) is not Named:
        raise Damaged(f"a {printable(type(function).__name__, 40)} is called")
    known = CALLS.get(function.name)
    if known is not None:
        return known(machine, arguments)
    # A function would have to run; an object of a class is kept as what the file says about it.
    if function.name not in INERT and not function.name.rpartition(".")[2].lstrip("_")[:1].isupper():
        raise NeedsCode(function.name)
    return instance(machine, function.name, arguments)


def instance(machine: Machine, name: str, arguments: tuple[Any, ...]) -> Any:
    """A `Record` for an object of a class; raises `NeedsCode` for a class that the reader does not take."""
    if name in _PLAIN:
        return CALLS[name](machine, arguments)
    library = name.partition(".")[0]
    standard = library in sys.stdlib_module_names or library in ("__builtin__", "__builtins__")
    if name in INERT or (not standard and machine.records(name)):
        return machine.record(name, arguments)
    raise NeedsCode(name)


INERT = frozenset(
    {
        "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.date", "datetime.time",
        "datetime.timedelta", "datetime.timezone", "uuid.UUID", "decimal.Decimal", "fractions.Fraction",
        "numpy.ndarray", "numpy.dtype", "torch.device", "torch.Generator",
        *(f"{module}.{kind}" for module in ("pathlib", "pathlib._local") for kind in (
            "Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    }
)  # fmt: skip
"""Classes that training programs leave beside their weights; records for them are taken from every file."""

_DICTS = tuple(
    f"{module}.AttributeDict"
    for module in ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data",
                   "pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing")
)  # fmt: skip
"""Dictionaries with another name."""

_GETTERS = frozenset({"torch_geometric.data.batch.DynamicInheritanceGetter"})
"""Makes PyG's class of a batch anew; the batch becomes a record of that name."""


def _batch(machine: Machine, arguments: tuple[Any, ...]) -> Record:
    bases = [base.name for base in arguments if type(base) is Named]
    if not bases or not all(machine.records(base) for base in bases):
        raise NeedsCode(bases[-1] if bases else "a class without a name")
    return machine.record("torch_geometric.data.batch.Batch", arguments)


def _wrong(name: str) -> Damaged:
    return Damaged(f"asks for a call ({name}) with arguments that can fill the memory or that no checkpoint has")


def _items(machine: Machine, name: str, arguments: tuple[Any, ...], kinds: tuple[type, ...]) -> Any:
    """The one argument, when it is a container of these kinds."""
    if not arguments:
        return ()
    if len(arguments) != 1 or type(arguments[0]) not in kinds:
        raise _wrong(name)
    machine.spend(100 * len(arguments[0]))
    return arguments[0]


def _dictionary(kind: Callable[[], dict[Any, Any]]) -> Call:
    def build(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        items = _items(machine, "dict", arguments, (dict, OrderedDict, list, tuple))
        pairs = list(items.items() if isinstance(items, dict) else items)
        made = kind()
        machine.spend(100)
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise _wrong("dict")
            machine.check_key(pair[0])
            made[pair[0]] = pair[1]
        return made

    return build


def _collection(kind: Callable[..., Any], *, keys: bool = False) -> Call:
    """A list or tuple, or with ``keys`` a set."""

    def build(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        taken = (list, tuple, set, frozenset) if keys else (list, tuple)
        items = _items(machine, "set" if keys else "sequence", arguments if keys else arguments[:1], taken)
        machine.spend(100)
        for item in items if keys else ():
            machine.check_key(item)
        return kind(items)

    return build


def _encode(machine: Machine, arguments: tuple[Any, ...]) -> bytes:
    """How Python writes bytes at protocol 2."""
    if (
        not 1 <= len(arguments) <= 2
        or type(arguments[0]) is not str
        or arguments[1:] not in (("latin1",), ("latin-1",))
    ):
        raise _wrong("encode")
    machine.spend(100 + len(arguments[0]))
    return arguments[0].encode("latin1")


def _bytes(kind: Callable[..., Any]) -> Call:
    def build(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        if arguments and type(arguments[0]) is str:
            return kind(_encode(machine, arguments))
        return kind(_items(machine, kind.__name__, arguments, (bytes, bytearray)) or b"")

    return build


def _numbers(kind: Callable[..., Any]) -> Call:
    def build(machine: Machine, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) > 3 or any(type(number) not in (int, float, type(None)) for number in arguments):
            raise _wrong("numbers")
        machine.spend(100)
        return kind(*arguments)

    return build


def _type(machine: Machine, arguments: tuple[Any, ...]) -> Named:
    """How `pickle` writes the class of None; a class of three arguments would be made anew."""
    if arguments != (None,):
        raise NeedsCode("builtins.type")
    return Named("builtins.NoneType")


def _attribute(machine: Machine, arguments: tuple[Any, ...]) -> Named:
    """How `pickle` writes a method such as ``torch.relu``: one more name, never looked up."""
    holder, name = arguments
    if not isinstance(holder, (Named, Record)) or type(name) is not str or len(holder.name) + len(name) > 1000:
        raise NeedsCode("builtins.getattr")
    machine.spend(len(holder.name) + len(name))
    return Named(f"{holder.name}.{name}")


def _record(name: str) -> Call:
    return lambda machine, arguments: machine.record(name, arguments)


def _scalar(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A NumPy scalar as the Python number that it holds."""
    formats = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i", "i2": "<h", "i1": "<b",
               "u8": "<Q", "u4": "<I", "u2": "<H", "u1": "<B", "b1": "<?"}  # fmt: skip
    kind, raw = arguments if len(arguments) == 2 else (None, None)
    code = kind.arguments[0] if type(kind) is Record and kind.name == "numpy.dtype" and kind.arguments else ""
    form = formats.get(code) if type(code) is str else None
    if form is None or type(raw) is not bytes or len(raw) != struct.calcsize(form):
        return machine.record("numpy.generic", arguments)
    return struct.unpack(form, raw)[0]


_REBUILT: dict[str, Call] = {
    "_rebuild_tensor": tensors.strided, "_rebuild_tensor_v2": tensors.strided, "_rebuild_tensor_v3": tensors.typed,
    "_rebuild_parameter": tensors.first, "_rebuild_parameter_with_state": tensors.first,
    "_rebuild_device_tensor_from_cpu_tensor": tensors.first, "_rebuild_sparse_tensor": tensors.sparse,
    "_rebuild_qtensor": tensors.quantized, "_rebuild_nested_tensor": tensors.nested,
    "_rebuild_meta_tensor_no_storage": tensors.meta, "_rebuild_wrapper_subclass": tensors.wrapper,
    "_rebuild_device_tensor_from_numpy": _record("torch.Tensor"),
}  # fmt: skip

_PLAIN: dict[str, Call] = {
    "collections.OrderedDict": _dictionary(OrderedDict), "collections.Counter": _dictionary(dict),
    # Without its factory, so that looking for a key never makes one.
    "collections.defaultdict": lambda machine, arguments: _dictionary(dict)(machine, arguments[1:]),
    # A list: deques inside each other end the process when they are collected, since each frees the next one by a call in C.
    "collections.deque": _collection(list), "torch.Size": lambda machine, arguments: tensors.sizes(_items(machine, "torch.Size", arguments, (list, tuple))),
    **{f"{module}.{name}": build for module in ("builtins", "__builtin__") for name, build in {
        "set": _collection(set, keys=True), "frozenset": _collection(frozenset, keys=True),
        "list": _collection(list), "tuple": _collection(tuple),
        "dict": _dictionary(dict), "bytes": _bytes(bytes), "bytearray": _bytes(bytearray),
        "complex": _numbers(complex), "slice": _numbers(slice), "range": _record("range"), "xrange": _record("range"), "object": _record("object"),
        "type": _type, "getattr": _attribute,
    }.items()},
    **dict.fromkeys(_DICTS, _dictionary(dict)),
}  # fmt: skip

CALLS: dict[str, Call] = {
    **_PLAIN,
    "_codecs.encode": _encode,
    "torch.serialization._get_layout": lambda machine, arguments: arguments[0],
    "torch._tensor._rebuild_from_type_v2": tensors.from_type,
    "torch._tensor._rebuild_from_type": tensors.from_type,
    "torch.nn.parameter.Parameter": tensors.first,
    "torch.nn.parameter.UninitializedParameter": tensors.uninitialised,
    "torch.nn.parameter.UninitializedBuffer": tensors.uninitialised,
    **{f"torch._utils.{name}": build for name, build in _REBUILT.items()},
    **{f"{module}.multiarray.{name}": build for module in ("numpy.core", "numpy._core")
       for name, build in (("scalar", _scalar), ("_reconstruct", _record("numpy.ndarray")))},
    **{f"{module}.numeric._frombuffer": _record("numpy.ndarray") for module in ("numpy.core", "numpy._core")},
    **{f"numpy.random._pickle.__{name}_ctor": _record("numpy.random")
       for name in ("randomstate", "bit_generator", "generator")},
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": _record("numpy.random"),
    "functools.partial": _record("functools.partial"), "copyreg._reconstructor": _record("object"),
    "logging.getLogger": _record("logging.Logger"), "re._compile": _record("re.Pattern"),
    # Annotations such as `Optional[Tensor]`, which PyG's layers keep.
    "_operator.getitem": _record("typing.Annotation"), "_operator.or_": _record("typing.Annotation"),
}  # fmt: skip
"""Name → what a call of it becomes. Nothing else is called; the functions of these names are not either."""
