"""The element types that torch stores, and the classes of storages that hold them."""

from __future__ import annotations

ITEM_SIZES: dict[str, int] = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
    **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("uint8", "int8", "bool", "qint8", "quint8", "quint4x2", "quint2x4"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1),
    "float4_e2m1fn_x2": 1,
}
"""Bytes of an element by dtype."""

QUANTIZED = frozenset(name for name in ITEM_SIZES if name.startswith(("qint", "quint")))
"""Element types whose entries mean nothing without a scale."""

COMPLEX = frozenset(name for name in ITEM_SIZES if name.startswith("complex"))
"""Element types of which torch makes conjugated views."""

NEGATED = frozenset(("float16", "float32", "float64", "complex64", "complex128"))
"""Element types whose negated views (imaginary parts of conjugated ones, above all) torch can read."""

PACKED = {"quint4x2": 2, "quint2x4": 4}
"""Entries that share a byte, by dtype."""

STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QUInt8Storage": "quint8", "QInt8Storage": "qint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
    "UntypedStorage": "uint8", "_UntypedStorage": "uint8",
}  # fmt: skip
"""Class of a storage → dtype."""
