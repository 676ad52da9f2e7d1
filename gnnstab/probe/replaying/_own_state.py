"""The last guard of a replay: an operation of a copy that would write into the run's own tensors is refused before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from gnnstab.left_out import left_out
from gnnstab.probe.own_operations import is_own
from gnnstab.probe.replaying.known import Known
from gnnstab.probe.replaying.reach import held_by, refuse_draws_of_process
from gnnstab.torch_private import DispatchMode, generator_number, not_compiled, storage_address

_CREATED = ("lift_fresh", "lift_fresh_copy")
"""What `torch.tensor` ends in: its operand was made outside of all operations."""

_STATISTICS = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4), "miopen_batch_norm": (3, 4)}
"""Arguments that these write into without their schema saying so."""

_NUMBERS = frozenset((int, float, bool, type(None)))
"""Most arguments that are no tensors."""

_STRIDED = torch.strided

Search = Callable[[Any], Iterator[tuple[str, Tensor]]]


class Guard:
    """Runs the first forward of a copy in each mode, with gradients and without, under `OwnState`; the next ones do the same.

    What a copy shares with its original is looked for before (`reach.shared_with`), but not everything that Python code can
    reach can be seen from outside it.

    Args:
        held: What was copied with the model.
        tensors_in: Names and tensors of a value.
    """

    def __init__(self, held: Iterable[Any], tensors_in: Search) -> None:
        values = list(held)
        kinds = {kind for kind in set(map(type, values)) if issubclass(kind, (Tensor, torch.Generator))}
        self._held = [value for value in values if type(value) in kinds]
        self._tensors_in = tensors_in
        self.seen: set[tuple[bool, bool]] = set()
        """(training, with gradients) of every mode that was looked at."""

        self.around: list[Any] | None = None
        """As `Known.around`, where that was looked for when the copy was made."""

    def know(self, known: Known) -> None:
        """The next copies of the same model are asked about nothing that this one has shown."""
        known.copied, self.seen, self.around = True, known.modes, known.around

    def __call__(self, twin: nn.Module, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run(*args, **kwargs)``, where ``run`` is ``twin`` or calls it."""
        refuse_draws_of_process(twin)
        mode = (twin.training, torch.is_grad_enabled())
        if mode in self.seen:
            return run(*args, **kwargs)
        given = (tensor for _, tensor in self._tensors_in([args, kwargs]))
        kept = (tensor for _, tensor in self._tensors_in(held_by(twin)))
        passed = (value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator))
        with OwnState([*self._held, *given, *kept, *passed]):
            output = run(*args, **kwargs)
        self.seen.add(mode)
        return output


class OwnState(DispatchMode):
    """Raises `UsageError` before an operation writes into, or would send gradients to, a tensor that is neither in ``own`` nor
    made by an operation inside, and before one draws from a generator that is not in ``own``."""

    supports_higher_order_operators = True

    def __init__(self, own: Iterable[Tensor | torch.Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = list(own)
        self._own = {-1} | {_memory(value) for value in held if isinstance(value, Tensor)}
        # Those of the process are given back as they were, see `same_random_state`.
        shared = (torch.default_generator, *torch.cuda.default_generators)
        self._generators = {generator_number(value) for value in (*held, *shared) if isinstance(value, torch.Generator)}

    @not_compiled
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the operands, run the operation, and know what it made for the copy's own."""
        own = self._own
        strange = {place for place in map(_memory, _tensors((args, kwargs) if kwargs else args)) if place not in own}
        if strange:
            self._look(func, args, kwargs or {}, strange)
        generator = kwargs.get("generator") if kwargs else None
        if isinstance(generator, torch.Generator) and generator_number(generator) not in self._generators:
            self._refuse(f"{_name(func)} draws from a generator")
        result = func(*args, **kwargs) if kwargs else func(*args)
        made = (_memory(result),) if type(result) is Tensor else map(_memory, _tensors(result))
        own.update(made if not strange or _name(func) in _CREATED else set(made) - strange)
        return result

    def _look(self, func: Any, args: Any, kwargs: dict[str, Any], strange: set[int]) -> None:
        changed = [("writes into", tensor) for tensor in _written(func, args, kwargs)]
        if torch.is_grad_enabled():
            changed += [("sends gradients to", tensor) for tensor in _tensors((args, kwargs)) if tensor.requires_grad]
        for does, tensor in changed:
            if _memory(tensor) in strange and not is_own(2):
                self._refuse(f"{_name(func)} {does} a tensor of shape {tuple(tensor.shape)}")

    def _refuse(self, what: str) -> NoReturn:
        raise left_out(
            f"a copy cannot be run for a replay: {what} that is not the copy's own, and that would change the training"
        )


@lru_cache(maxsize=1024)
def _name(func: Any) -> str:
    return str(func._schema.name).rpartition("::")[2].rstrip("_") if hasattr(func, "_schema") else str(func)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that the operation changes."""
    if not hasattr(func, "_schema"):
        return []
    unsaid = _STATISTICS.get(_name(func), ())
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if position in unsaid or (argument.alias_info is not None and argument.alias_info.is_write):
            found += _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
    return found


def _tensors(value: Any) -> list[Tensor]:
    """The tensors among the arguments of an operation, or in what it returns."""
    found, waiting = [], [value]
    for one in waiting:  # What is inside of it comes behind it.
        if type(one) in _NUMBERS:
            continue
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
    return found


def _memory(tensor: Tensor) -> int:
    """The memory that a tensor shows, -1 where it has none of its own."""
    if tensor.layout is not _STRIDED:
        return -1
    try:
        return storage_address(tensor)
    except (NotImplementedError, RuntimeError, ValueError):  # A meta, a fake or a lazy tensor.
        return -1
