"""Names of the tensors that a step is computed from: those of the batch, the parameters and buffers, and local variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.replaying.replica import tensors_in
from gnnstab.stored import is_finite, readable

SHOWN = 16
"""Rows of one tensor that are told at most."""


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor that came from outside the step."""

    name: str
    """``y``, ``paper.x``, ``conv.lin.weight``; empty when nothing is known about it."""

    owner: str
    """``batch``, ``parameter``, ``buffer``, ``local`` (a variable where it was used) or ``unknown``."""

    rows: tuple[int, ...] = ()
    """Rows of it that hold NaN or Inf, at most `SHOWN`; empty for a scalar."""

    bad_rows: int = 0
    """How many rows do."""

    columns: tuple[int, ...] = ()
    """Columns of a matrix that hold them, at most `SHOWN`; empty where all do, or where it is none."""

    graphs: tuple[int, ...] = ()
    """Graphs of a batch that its rows belong to, where the batch says so; at most `SHOWN`."""

    kinds: str = "NaN"
    """``NaN``, ``Inf`` or ``NaN and Inf``."""

    dims: int = 0
    mask: bool = False
    """True when it holds −inf beside a single other value: an additive mask."""

    bias: bool = False
    """True when it holds −inf and neither NaN nor +inf: an additive mask, if it is added to scores."""

    @property
    def words(self) -> str:
        """`` `y[3]`, `y[17]` hold NaN`` or `` `nbr_e` holds NaN in rows 3, 7``."""
        name = self.name
        if not name:
            return f"a tensor that came from outside holds {self.kinds}"
        if not self.rows:
            return f"`{name}` holds {self.kinds}"
        more = f" and {self.bad_rows - 4} more" if self.bad_rows > 4 else ""
        if self.dims == 1:
            entries = ", ".join(f"`{name}[{row}]`" for row in self.rows[:4])
            return f"{entries}{more} hold{'s' if self.bad_rows == 1 else ''} {self.kinds}"
        where = f"row{'s' if self.bad_rows > 1 else ''} {', '.join(map(str, self.rows[:4]))}{more}"
        if 0 < len(self.columns) <= 4:
            where += f", column{'s' if len(self.columns) > 1 else ''} {', '.join(map(str, self.columns))}"
        if 0 < len(self.graphs) <= 4:
            where += f" (graph{'s' if len(self.graphs) > 1 else ''} {', '.join(map(str, self.graphs))})"
        return f"`{name}` holds {self.kinds} in {where}"


class TensorNames:
    """Looks up what a tensor is called, by the memory that it lies in.

    Args:
        model: Names its parameters and buffers.
        args: Positional arguments of its forward, named as the forward names them.
        kwargs: Keyword arguments.
        batch: The batch as the loss sees it, where it is another object.
    """

    def __init__(
        self, model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, batch: Any = None
    ) -> None:
        self.tensors: list[tuple[str, str, Tensor]] = []
        """(owner, name, tensor)."""

        self._memory: dict[int, tuple[str, str, Tensor]] = {}
        self.learn(model, args, kwargs or {})
        self.add("batch", [] if batch is None else [(name or "batch", t) for name, t in tensors_in(batch)])
        self.add("parameter", model.named_parameters())
        self.add("buffer", model.named_buffers())

    def learn(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Name the arguments of one more forward."""
        self.add("batch", named_tensors(tuple(args), kwargs, model).items())

    def add(self, owner: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Name tensors of one owner; a name that is empty is none."""
        for name, tensor in tensors:
            key = memory(tensor)
            known = self._memory.get(key)
            if key and name and (known is None or (owner == "batch" and known[2] is not tensor)):
                self._memory[key] = (owner, name, tensor)
                self.tensors.append((owner, name, tensor))

    def non_finite(self) -> list[Named]:
        """Every named tensor that holds a NaN or an Inf, masks left out."""
        found = [self._named(name, owner, tensor) for owner, name, tensor in self.tensors if not is_finite(tensor)]
        return [named for named in found if not named.mask]

    def named(self, tensor: Tensor, frame: FrameType | None = None) -> Named:
        """What is known about a tensor that holds NaN or Inf; ``frame`` is where it was used."""
        known = self._memory.get(memory(tensor))
        if known is not None and not is_finite(known[2]):
            return self._named(known[1], known[0], known[2])
        if known is not None:
            return self._named(known[1], known[0], tensor)
        name = local_name(tensor, frame)
        return self._named(name, "local" if name else "unknown", tensor)

    def _named(self, name: str, owner: str, tensor: Tensor) -> Named:
        tensor = readable(tensor)
        rows = bad_rows(tensor)
        bias = bool(((tensor == -torch.inf) | torch.isfinite(tensor)).all())
        return Named(
            name, owner, tuple(rows[:SHOWN]), len(rows), _bad_columns(tensor), self._graphs(name, tensor, rows),
            kinds(tensor), tensor.dim(), is_mask(tensor), bias,
        )  # fmt: skip

    def _graphs(self, name: str, tensor: Tensor, rows: Sequence[int]) -> tuple[int, ...]:
        """Graphs of these rows by PyG's ``batch`` (or ``paper.batch``, ``x_batch``) beside the tensor of this name."""
        beside = {f"{name.rpartition('.')[0]}.batch".lstrip("."), f"{name}_batch"}
        for _, other, told in self.tensors:
            if (
                other in beside
                and told.dtype == torch.long
                and told.dim() == 1
                and tensor.dim()
                and len(told) == len(tensor)
            ):
                return tuple(sorted({int(told[row]) for row in rows[:SHOWN]}))
        return ()


def local_name(tensor: Tensor, frame: FrameType | None) -> str:
    """The variable of a frame, or the part of one, that holds the tensor; empty when none does."""
    if frame is None:
        return ""
    wanted = memory(tensor)
    read = {name: frame.f_globals[name] for name in frame.f_code.co_names if name in frame.f_globals}
    for name, value in [*frame.f_locals.items(), *read.items()]:
        if isinstance(value, (Tensor, tuple, list, dict)) or hasattr(value, "to_dict"):
            for path, found in tensors_in(value, name):
                if wanted and memory(found) == wanted:
                    return path
        elif name == "self":
            for path, found in tensors_in({k: v for k, v in vars(value).items() if not k.startswith("_")}, name):
                if wanted and memory(found) == wanted:
                    return path
    return ""


def memory(tensor: Tensor) -> int:
    """Where a tensor's storage lies; 0 for one without memory, as one that a lazy module has not made yet."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):
        return 0


def kinds(tensor: Tensor) -> str:
    """``NaN``, ``Inf``, or both, of a tensor that is not finite."""
    nan, inf = bool(torch.isnan(tensor).any()), bool(torch.isinf(tensor).any())
    return "NaN and Inf" if nan and inf else "NaN" if nan else "Inf"


def bad_rows(tensor: Tensor) -> list[int]:
    """Positions along the first axis that hold a NaN or an Inf."""
    if not tensor.dim():
        return []
    bad = ~torch.isfinite(tensor.detach())
    found: list[int] = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist()
    return found


def _bad_columns(tensor: Tensor) -> tuple[int, ...]:
    """Columns of a matrix that hold a NaN or an Inf, where others do not."""
    if tensor.dim() != 2:
        return ()
    bad = (~torch.isfinite(tensor.detach())).any(0)
    return () if bool(bad.all()) else tuple(bad.nonzero().flatten().tolist()[:SHOWN])


def is_mask(tensor: Tensor) -> bool:
    """True for a tensor of −inf beside one other value, as masks that are added to scores have it."""
    values = tensor.detach()
    finite = values[torch.isfinite(values)]
    if bool((values == -torch.inf).sum() + finite.numel() != values.numel()):
        return False
    return not finite.numel() or bool((finite == finite[0]).all())
