"""While a thread of the user's may draw from the generators of the process, copies draw from others, and those are left alone."""

from __future__ import annotations

from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch

from gnnstab.left_out import left_out
from gnnstab.torch_private import DispatchMode, generator_number, not_compiled

_SAID = ("p", "dropout_p", "dropout", "train")
"""Names of the arguments that say how much an operation drops, and whether."""


class OwnDraws(DispatchMode):
    """Operations of this thread that would draw from a generator of the process draw from one that was in the same state.

    Raises `UsageError` before an operation that takes no generator: what it draws could not be given back, as the thread
    ``beside`` may have drawn in between.
    """

    supports_higher_order_operators = True

    def __init__(self, beside: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.beside = beside
        self.generators: dict[str, torch.Generator] = {}
        """Device → the generator in the place of that of the process."""

        self._token: Any = None

    def __enter__(self) -> OwnDraws:
        self._token = _own.set(self)
        for device in ("cpu", *(f"cuda:{i}" for i in range(len(torch.cuda.default_generators)))):
            self.of(device)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *failure: Any) -> None:
        _own.reset(self._token)
        super().__exit__(*failure)  # type: ignore[no-untyped-call]

    def of(self, device: torch.device | str) -> torch.Generator:
        """The generator in the place of that of a device."""
        place = torch.device(device)
        if str(place) == "cuda":
            place = torch.device("cuda", torch.cuda.current_device())
        if (known := self.generators.get(str(place))) is None:
            if place.type not in ("cpu", "cuda"):
                raise self.refusal(f"an operation on {place.type}")
            known = self.generators[str(place)] = torch.Generator(place)
            known.set_state(_of_process(place).get_state())
        return known

    def seed(self, seed: int) -> None:
        """Set the generators of all devices to a seed."""
        for generator in self.generators.values():
            generator.manual_seed(seed)

    @not_compiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation with the generator of its device in the place of the process's."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            given, takes = kwargs.get("generator"), _with_generator(func)
            if takes is None and _drops(func, args, kwargs):
                raise self.refusal(f"the operation {func}")
            if takes is not None and (
                given is None or generator_number(given) == generator_number(_of_process(given.device))
            ):
                func, kwargs = takes, {**kwargs, "generator": self.of(_device(args, kwargs))}
        return func(*args, **kwargs)

    def refusal(self, what: str) -> Exception:
        """The error to raise before ``what`` draws from a generator of the process."""
        return left_out(
            f"{what} draws from a generator of the process, as the thread {self.beside} may do meanwhile; it was not run on a copy"
        )


_own: ContextVar[OwnDraws | None] = ContextVar("_own", default=None)

own_draws = _own.get
"""What stands in for the generators of the process in this thread; None where nothing does."""


def generator_of(device: torch.device | str) -> torch.Generator:
    """The generator from which operations on a device draw here and now."""
    own = _own.get()
    return _of_process(torch.device(device)) if own is None else own.of(device)


def _of_process(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


def _device(args: Any, kwargs: dict[str, Any]) -> torch.device | str:
    first = next((a for a in args if isinstance(a, torch.Tensor)), None)
    return kwargs.get("device") or ("cpu" if first is None else first.device)


def _drops(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """False of an operation that is to drop nothing, or to do so in training alone."""
    said = [
        args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
        for position, argument in enumerate(func._schema.arguments)
        if argument.name in _SAID
    ]
    return all(said)


@lru_cache(256)
def _with_generator(func: Any) -> Any:
    """The overload with the same arguments and a generator; None where there is none."""
    wanted = {argument.name for argument in func._schema.arguments} | {"generator"}
    overloads = [func, *(getattr(func.overloadpacket, name) for name in func.overloadpacket.overloads())]
    return next((one for one in overloads if {a.name for a in one._schema.arguments} == wanted), None)
