"""What code names: globals, modules, attributes, the steps of optimizers, and objects whose state nobody can put back."""

from __future__ import annotations

import dis
import functools
import types
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gnnstab.finalisers import slots_of


@functools.lru_cache(2**15)  # Of a large library that a loss reaches, once.
def names_of(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Globals that a function reads, modules that it imports, and all that it names, also in the functions that it makes."""
    steps = list(dis.get_instructions(code))
    read = {i.argval for i in steps if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    imported = {i.argval for i in steps if i.opname == "IMPORT_NAME"}
    names = {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
    inner = [names_of(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    sets = zip((read, imported, names), *inner, strict=True)
    return tuple(frozenset().union(*each) for each in sets)  # type: ignore[return-value]


QUIET = frozenset({
    "_pytest", "joblib", "lightning", "lightning_fabric", "lightning_utilities", "matplotlib", "mlflow", "networkx", "pandas", "pluggy",
    "pyarrow", "pytest", "pytorch_lightning", "scipy", "sklearn", "tensorboard", "torchmetrics", "tqdm", "wandb",
})  # fmt: skip
"""Large libraries whose functions keep nothing in their globals that a run would miss; what their objects hold counts all the same."""


class Steps:
    """Whether code reaches an optimizer, or a schedule, and takes its steps."""

    def __init__(self) -> None:
        self._path, self._steps = "", False

    def saw(self, value: Any, path: str) -> None:
        """The next thing that code reaches."""
        if isinstance(value, types.FunctionType):
            self._steps |= not _STEPS.isdisjoint(names_of(value.__code__)[2])
        elif isinstance(value, (Optimizer, LRScheduler)):
            self._path = self._path or path or type(value).__name__

    def taken(self) -> str:
        """Where it hangs whose steps are taken; empty for nowhere."""
        return self._path if self._steps else ""


_STEPS = frozenset({"step", "zero_grad", "load_state_dict", "add_param_group"})


def is_sealed(value: Any) -> bool:
    """True of what goes on from what it was given before, and lets nobody put that back: a hash, a stream, a database."""
    return type(value).__module__ in _SEALED


_SEALED = frozenset(
    (
        *("sqlite3", "zlib", "_bz2", "_lzma"),
        *("_hashlib", "_md5", "_sha1", "_sha2", "_sha256", "_sha512", "_sha3", "_blake2"),
    )
)
"""Their modules."""


def may_count(value: Any) -> bool:
    """True of a function, a class or an object in whose attributes code may count; what of it is put back, `Outside` knows."""
    if isinstance(value, (types.FunctionType, type)):
        return True
    if isinstance(value, _NO_OBJECTS) or _is_opaque(type(value)):
        return False
    return hasattr(value, "__dict__") or bool(slots_of(type(value)))


_NO_OBJECTS = (types.ModuleType, types.MethodType, types.BuiltinFunctionType, Tensor)
"""They have attributes, or those of something else, that are looked at elsewhere."""


def _is_opaque(kind: type) -> bool:
    """True of classes whose objects change as long as a process runs, whatever a model does."""
    return kind.__module__.partition(".")[0] in _OPAQUE or kind.__module__ == "torch._ops"


_OPAQUE = frozenset({"gnnstab", "queue", "concurrent", "asyncio", "subprocess", "socket", "selectors"})
