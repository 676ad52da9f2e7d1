"""`StoredTensor` → `torch.Tensor`: plain tensors that look into the file's own bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnstab.unpickling._values import Damaged, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor, UntypedStorage

ALIGNMENT = 16
"""Bytes; a storage that begins elsewhere is copied, since torch's kernels expect what an allocation would give."""


LARGEST_READ = 256 * 2**20
"""Bytes up to which a file is read, not mapped: a mapped one that somebody else cuts ends the process (SIGBUS)."""


class Builder:
    """Builds the tensors of one file, which is never written to."""

    def __init__(self, file: Path, *, swapped: bool = False, mapped: bool = False) -> None:
        """``swapped``: the file was written on a machine of the other byte order. ``mapped``: map it, however small it is."""
        import torch

        from gnnstab import torch_private

        self._torch, self._private = torch, torch_private
        size = file.stat().st_size
        if mapped or size > LARGEST_READ:
            self._whole: Any = torch.UntypedStorage.from_file(str(file), False, size)
        else:
            content = torch.empty(size, dtype=torch.uint8)
            with file.open("rb") as stream:
                if stream.readinto(content.numpy().data) != size:
                    raise Damaged("it was cut while it was read")
            self._whole = content.untyped_storage()
        self._swapped = swapped
        self._storages: dict[int, tuple[UntypedStorage, Any]] = {}

    def __call__(self, stored: StoredTensor) -> Tensor:
        """The tensor; raises `Damaged` when torch itself refuses its parts."""
        try:
            tensor: Tensor = getattr(self, f"_{stored.kind}")(stored)
            tensor = tensor.conj() if stored.conjugate else tensor
            return self._private.negative_view(tensor) if stored.negative else tensor
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise Damaged(f"a {stored.kind} tensor cannot be built ({str(error)[:80]})") from None

    def _storage(self, stored: StoredTensor) -> tuple[UntypedStorage, int]:
        """What the tensor is a view of, and the number of its elements before the tensor's first.

        It is always the whole piece that the file stores, so that a piece is copied once, however many views it has.
        """
        assert stored.storage is not None
        dtype = getattr(self._torch, stored.dtype)
        begin, size = stored.storage.member
        before, rest = divmod(stored.storage.begin - begin, dtype.itemsize)
        if rest:
            raise ValueError("its view begins inside an element")
        found, of = self._storages.get(begin, (None, dtype))
        if found is None:
            found = self._torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
            if size:
                found = self._whole[begin : begin + size]
            if size and (begin % ALIGNMENT or self._swapped):
                found = found.clone()
            if size and self._swapped:
                found.byteswap(dtype)
            self._storages[begin] = found, dtype
        if self._swapped and of != dtype:
            raise ValueError("its storage is of the other byte order and of two types")
        return found, before + stored.offset

    def _strided(self, stored: StoredTensor) -> Tensor:
        storage, offset = self._storage(stored)
        dtype = getattr(self._torch, stored.dtype)
        return self._torch.empty(0, dtype=dtype).set_(storage, offset, stored.shape, stored.stride)

    def _meta(self, stored: StoredTensor) -> Tensor:
        dtype = getattr(self._torch, stored.dtype)
        return self._torch.empty_strided(stored.shape, stored.stride, dtype=dtype, device="meta")

    def _uninitialised(self, stored: StoredTensor) -> Tensor:
        return self._torch.nn.parameter.UninitializedParameter(requires_grad=False)

    def _sparse(self, stored: StoredTensor) -> Tensor:
        layout, *parts, coalesced = stored.parts
        if layout == "torch.sparse_coo":
            indices, values = parts
            return self._torch.sparse_coo_tensor(
                indices, values, stored.shape, check_invariants=True, is_coalesced=coalesced or None
            )
        outer, inner, values = parts
        name = getattr(self._torch, layout.removeprefix("torch."))
        return self._torch.sparse_compressed_tensor(
            outer, inner, values, stored.shape, layout=name, check_invariants=True
        )

    def _quantized(self, stored: StoredTensor) -> Tensor:
        torch = self._torch
        storage, offset = self._storage(stored)
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=getattr(torch, stored.dtype), _internal=True)
        scheme, *quantizer = stored.parts
        known = (torch.per_tensor_affine, torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        method = next((each for each in known if str(each) == scheme), None)
        if method is None:
            raise ValueError("unknown scheme")
        place = (offset, stored.shape, stored.stride)
        return self._private.rebuild_quantized(typed, *place, (method, *quantizer), False, {})

    def _nested(self, stored: StoredTensor) -> Tensor:
        buffer, shapes, strides, offsets = stored.parts
        table = zip(shapes.tolist(), strides.tolist(), offsets.tolist(), strict=True)
        pieces = [(tuple(shape), tuple(stride), offset) for shape, stride, offset in table]
        if buffer.dim() != 1 or sum(self._torch.Size(shape).numel() for shape, _, _ in pieces) > buffer.numel():
            raise ValueError("its parts are larger than its buffer")
        return self._torch.nested.as_nested_tensor([buffer.as_strided(*piece) for piece in pieces])
