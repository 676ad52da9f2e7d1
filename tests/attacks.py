"""Pickles written by hand to cost more than they are worth, and the operations that they are made of."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

DEEP = 150_000


def text(value: str) -> bytes:
    """The operation that puts a text down."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(name: str, *arguments: bytes) -> bytes:
    """The operations of a call."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n(".encode() + b"".join(arguments) + b"tR"


def storage(elements: int, kind: str = "FloatStorage", key: str = "0") -> bytes:
    """The operations that refer to the storage of the files written here."""
    number = b"J" + struct.pack("<i", elements)
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number + b"tQ"


def tensor(shape: tuple[int, ...] = (2, 2), stride: tuple[int, ...] = (2, 1), offset: int = 0) -> bytes:
    """The operations that rebuild a tensor of the one storage, which holds four numbers."""
    sizes = [b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t" for numbers in (shape, stride)]
    hooks = b"ccollections\nOrderedDict\n)R"
    return call("torch._utils._rebuild_tensor_v2", storage(4), b"K" + bytes([offset]), *sizes, b"\x89", hooks)


def view(of: bytes) -> bytes:
    """The operations that rebuild two numbers of a storage."""
    return call("torch._utils._rebuild_tensor_v2", of, b"K\x00K\x02\x85K\x01\x85\x89}")


def quantized(axis: int) -> bytes:
    """The operations that rebuild four numbers with one scale for all places along ``axis``."""
    scales = b"](G" + bytes(8) + b"e](K\x00eK" + bytes([axis])
    parts = b"K\x00K\x04\x85K\x01\x85(ctorch\nper_channel_affine\n" + scales + b"t\x89}"
    return call("torch._utils._rebuild_qtensor", storage(16, "QInt8Storage"), parts)


def flagged(kind: str, flag: str) -> bytes:
    """The operations that rebuild one entry of a storage as a view that ``flag`` (``neg`` or ``conj``) changes."""
    return call("torch._utils._rebuild_tensor_v2", storage(1, kind), b"K\x00))\x89}}(" + text(flag) + b"\x88u")


QUANTIZED = call(
    "torch._utils._rebuild_qtensor",
    storage(4, "QInt8Storage"),
    b"K\x00K\x01\x85K\x01\x85(ctorch\nper_tensor_affine\nG" + struct.pack(">d", 1) + b"K\x00t\x89}",
)
HUGE = tensor((10**5, 10**5), (0, 0))
TUPLES = b")" + b"\x85" * DEEP


def written(path: Path, body: bytes, **members: bytes) -> Path:
    """A torch archive with this value under ``x`` beside a healthy tensor."""
    description = b"\x80\x02}(" + text("w") + tensor() + text("x") + body + b"u."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", description)
        archive.writestr("a/version", b"3\n")
        archive.writestr("a/data/0", members.get("data", struct.pack("<4f", 1, 2, 3, 4)))
    return path


ATTACKS: dict[str, tuple[bytes, str]] = {
    "nested tuples as a key": (b"}" + TUPLES + b"K\x01s", "a tuple is a key"),
    "nested tuples as a key among others": (b"}(" + TUPLES + b"K\x01u", "a tuple is a key"),
    "nested tuples in a set": (b"\x8f(" + TUPLES + b"\x90", "a tuple is a key"),
    "nested tuples in a frozenset": (b"(" + TUPLES + b"\x91", "a tuple is a key"),
    "nested tuples in a called set": (call("builtins.set", b"](" + TUPLES + b"e"), "a tuple is a key"),
    "nested tuples in an OrderedDict": (
        call("collections.OrderedDict", b"](](" + TUPLES + b"K\x01ee"),
        "a tuple is a key",
    ),
    "nested tuples in an object's items": (
        b"cmine\nThing\n)\x81" + TUPLES + b"K\x01s",
        r"a tuple is a key|imports mine\.Thing",
    ),
    "wide tuples": (b"}((" + b"K\x01" * 100 + b"tK\x01u", "a tuple is a key"),
    "a set of an expanded tensor": (call("builtins.set", HUGE), "declare more than"),
    "a set of a tensor": (call("builtins.set", tensor()), "set"),
    "a Counter of a tensor": (call("collections.Counter", tensor()), "dict"),
    "a Size of a tensor": (call("torch.Size", tensor()), "Size"),
    "an AttributeDict of a tensor": (call("lightning.fabric.utilities.data.AttributeDict", tensor()), "dict"),
    "a parameter of an expanded tensor": (
        call("torch._utils._rebuild_parameter", HUGE, b"\x88", b"}"),
        "declare more than",
    ),
    "an expanded tensor of another type": (
        call("torch._utils._rebuild_device_tensor_from_cpu_tensor", HUGE, b"ctorch\nfloat64\n", text("cpu"), b"\x89"),
        "declare more than",
    ),
    "an attribute that shadows a method": (
        call(
            "torch._tensor._rebuild_from_type_v2",
            b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"ctorch\nTensor\n",
            b"(" + storage(4) + b"K\x00J\xa0\x86\x01\x00J\xa0\x86\x01\x00\x86K\x00K\x00\x86\x89}t",
            b"}" + text("numel") + b"K\x01s",
        ),
        "declare more than",
    ),
    "bytes without end": (call("builtins.bytearray", b"J\xff\xff\xff\x7f"), "bytearray.*fill the memory"),
    "bytes as many as asked for": (call("builtins.bytes", b"J\xff\xff\xff\x7f"), "bytes.*fill the memory"),
    "punycode": (call("_codecs.encode", text("a" * 1000), text("punycode")), "encode.*fill the memory"),
    "bytes encoded again and again": (
        text("a" * 1_000_000)
        + b"q\x01c_codecs\nencode\nq\x02]("
        + b"h\x02h\x01"
        + text("latin1")
        + b"q\x03\x86R"
        + b"h\x02h\x01h\x03\x86R" * 1000
        + b"e",
        "fill the memory",
    ),
    "a set made again and again": (
        b"]("
        + b"".join(b"J" + struct.pack("<i", n) for n in range(100_000))
        + b"eq\x01cbuiltins\nset\nq\x02]("
        + b"h\x02h\x01\x85R" * 1000
        + b"e",
        "fill the memory",
    ),
    "integers of equal hash": (
        b"}("
        + b"".join(b"\x8a\x0b" + ((2**61 - 1) * n).to_bytes(11, "little", signed=True) + b"N" for n in range(1, 20_000))
        + b"u",
        "keys are tuples or integers",
    ),
    "tuples as keys by the thousand": (
        b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"\x85N" for n in range(20_000)) + b"u",
        "keys are tuples",
    ),
    "an integer without end": (b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6, "an integer has 1000000 bytes"),
    "frozensets of two bytes": (b"](" + b"(\x91" * 1_100_000 + b"e", "lists and dicts"),
    "lists of one byte": (b"](" + b"]" * 3_000_000 + b"e", "lists and dicts"),
    "a tensor beyond its storage": (tensor((3, 2)), "needs 24 bytes, its storage has 16"),
    "a tensor that begins beyond": (tensor((1, 1), (1, 1), 200), "its storage has 16"),
    "a negative size": (tensor((-1, 2)), "none can have"),
    "a negative stride": (tensor((2, 2), (-2, 1)), "none can have"),
    "a storage that is not there": (view(storage(4, key="7")), "declares 16 bytes, the file has 0"),
    "a storage larger than its member": (view(storage(4, "DoubleStorage")), "declares 32 bytes, the file has 16"),
    "a storage that is a number": (view(b"K\x07"), "stands where the storage"),
    "a quantized tensor whose axis is none": (quantized(axis=7), "quantized tensor is none"),
    "a quantized tensor of too few scales": (quantized(axis=0), "quantized tensor is none"),
    "a quantized tensor made again and again": (
        b"ctorch._utils\n_rebuild_qtensor\nq\x01("
        + storage(16, "QInt8Storage")
        + b"K\x00K\x04\x85K\x01\x85(ctorch\nper_tensor_affine\nG\x3f\xf0"
        + bytes(6)
        + b"K\x00t\x89}tq\x02]("
        + b"h\x01h\x02R" * 20_000
        + b"e\x87",
        "fill the memory",
    ),
    "a nested tensor of empty pieces": (
        call("torch._utils._rebuild_nested_tensor", tensor((4,), (1,)), *[tensor((2**31 - 1, 0), (1, 1))] * 3),
        "fill the memory",
    ),
    "a nested tensor of wide tables": (
        call("torch._utils._rebuild_nested_tensor", tensor((4,), (1,)), *[tensor((1, 1_000_000), (0, 0))] * 3),
        "fill the memory",
    ),
    "objects of four bytes": (
        b"cargparse\nNamespace\nq\x01](" + b"h\x01)\x81" * 350_000 + b"e\x86",
        "lists and dicts",
    ),
    "attributes that are set again and again": (
        b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(50_000)) + b"uq\x01}K\x01Nsq\x02"
        b"cargparse\nNamespace\n)\x81h\x01b" + b"h\x02b" * 1000 + b"\x87",
        "fill the memory",
    ),
    "long names of short pieces": (
        b"]("
        + b"".join(b"X" + struct.pack("<I", 400) + b"%0400d" % n + b"r" + struct.pack("<I", n) for n in range(300))
        + b"".join(
            b"j" + struct.pack("<I", a) + b"j" + struct.pack("<I", b) + b"\x93" for a in range(300) for b in range(300)
        )
        + b"e",
        "fill the memory",
    ),
    **{
        f"a tensor of {kind} without a scale": (flagged(kind, "neg"), "has no scale")
        for kind in ("QInt8Storage", "QUInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")
    },
    "negated whole numbers": (flagged("ByteStorage", "neg"), "a conjugated or negated view"),
    "conjugated real numbers": (flagged("FloatStorage", "conj"), "a conjugated or negated view"),
    "a sparse tensor of quantized values": (
        call(
            "torch._utils._rebuild_sparse_tensor",
            b"ctorch\nsparse_coo\n(" + tensor((1, 1)) + QUANTIZED + b"K\x04\x85t",
        ),
        "a sparse tensor is none that torch writes",
    ),
    "marks without end": (b"(" * 20_000, "inside each other"),
    "an extension": (b"\x82\x01", "stands in no checkpoint"),
    "a text of the first protocol": (b"I10\n", "stands in no checkpoint"),
    "a bare mark": (b"K\x01tt", "out of order"),
}
"""Operations of a value, and what the refusal says."""
