"""The random state of a process: torch's, CUDA's, NumPy's and that of `random`."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from gnnstab.errors import is_thrown
from gnnstab.finalisers import refuse_finalisers
from gnnstab.guest import guest
from gnnstab.left_out import left_out
from gnnstab.numpy_state import drawn_from_numpy, numpy_state
from gnnstab.other_threads import may_draw
from gnnstab.sharding import WHY, waits_for_others
from gnnstab.trials import trial

Function = TypeVar("Function", bound=Callable[..., Any])

T = TypeVar("T")


_NAMING = "torch_geometric.nn.sequential"

_same: ContextVar[bool] = ContextVar("_same", default=False)
"""Whether what runs now is within `same_random_state`."""

_asked: ContextVar[bool] = ContextVar("_asked", default=False)
"""Whether the user asked for what runs now by a call, and no monitor does by itself."""


@contextmanager
def same_random_state() -> Iterator[None]:
    """Give every generator back as it was, also after an exception.

    Whoever runs a user's model draws from generators that the user's training goes on with: dropout from torch's, a
    sampler from NumPy's, a layer that drops whole paths from `random`. Nothing else of the user's takes part either, see
    `gnnstab.undisturbed.undisturbed`. Beside another thread of the user's, whose draws would be taken back, torch's operations draw from other
    generators, see `gnnstab.own_draws`, and nothing here may draw from NumPy's and that of `random`. What copies count outside of
    themselves inside is put back as well, see `gnnstab.trials`.

    Raises:
        UsageError: Nobody asked for what would run here, and it would disturb the run: hooks or modes of the user's are
            active without which copies compute something else.
    """
    within = _same.get()
    with _undisturbed(), trial(), _within():
        shared = not _draws_apart()
        put_numbers_back = numpy_state(within) if shared else None
        python, generators = random.getstate() if shared else None, _torch_states()
        try:
            yield
        finally:
            if put_numbers_back is not None:
                put_numbers_back()
            if python is not None:
                random.setstate(python)
            for generator, state in generators:
                generator.set_state(state)


def given_back() -> AbstractContextManager[None]:
    """`same_random_state`, where that does not hold already: the gate of every call of the user's code on copies."""
    return nullcontext() if _same.get() else same_random_state()


@contextmanager
def _within() -> Iterator[None]:
    token = _same.set(True)
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit) as error:
        if _asked.get() or not is_thrown(error):
            raise
        raise left_out(f"on a copy, code of yours raised {type(error).__name__}") from None
    finally:
        _same.reset(token)


def _undisturbed() -> AbstractContextManager[None]:
    if sys.modules.get("torch") is None:
        return nullcontext()
    from gnnstab.undisturbed import undisturbed

    return undisturbed(_asked.get())


def _draws_apart() -> bool:
    return sys.modules.get("torch") is not None and _own_draws() is not None


def _own_draws() -> Any:
    from gnnstab.own_draws import own_draws

    return own_draws()


def drawn_state() -> tuple[Any, ...]:
    """What tells whether a number was drawn in between: equal before and after where none was."""
    return random.getstate(), drawn_from_numpy(), tuple(state.numpy().tobytes() for _, state in _torch_states())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator set to ``seed`` inside, and given back as it was: two runs then differ in nothing drawn."""
    with same_random_state():
        seed_torch(seed)
        if not _draws_apart():
            _seed_numpy(seed)
            random.seed(seed)
        yield


def seed_torch(seed: int) -> None:
    """Set torch's generators to ``seed``, within `same_random_state`."""
    import torch

    if (own := _own_draws()) is None:
        torch.manual_seed(seed)
    else:
        own.seed(seed)


def _seed_numpy(seed: int) -> None:
    try:
        np.random.seed(seed)
    except TypeError:  # The user has set another bit generator than NumPy's first.
        generator = vars(np.random)["get_bit_generator"]()
        generator.state = type(generator)(seed).state


def keeps_random_state(function: Function) -> Function:
    """A function that the user calls, and that runs within `same_random_state` and as a `guest`."""

    @wraps(function)
    def kept(*args: Any, **kwargs: Any) -> Any:
        token = _asked.set(True)
        try:
            with guest(), same_random_state():
                return copy_context().run(function, *args, **kwargs)
        finally:
            _asked.reset(token)

    return kept  # type: ignore[return-value]


def deep_copy(value: T, memo: dict[int, Any] | None = None, *, again: bool = False) -> T:
    """`copy.deepcopy`, with names that are drawn from `random` during the copy unlike any that the caller will draw.

    torch_geometric's Sequential draws a name for its generated forward, also when it is copied, and two that draw the same
    name share one forward. Giving the state of `random` back after a plain copy would make the caller's next one such a pair.

    ``again``: the value was copied before and is as it was, so that nothing in it is asked about a second time.

    Raises:
        RuntimeError: The value is a model of which other processes hold a part: running a copy would wait for them, while they
            go on with the training.
        UsageError: A copy would draw a name while another thread may draw, or would clean up what is the run's; or it is
            the original.
    """
    if not again:
        if waits_for_others(value):
            raise RuntimeError(WHY)
        refuse_finalisers(value, memo)
    return _apart(_deep_copy(value, memo), value)


def _apart(twin: T, value: T) -> T:
    """``twin``, if it is a copy: a module with a ``__deepcopy__`` of its own may hand out itself."""
    own = {id(module) for module in getattr(value, "modules", list)()}
    for path, module in getattr(twin, "named_modules", list)() if own else ():
        if id(module) in own:
            name = path or type(module).__name__
            raise left_out(
                f"{type(value).__name__} cannot be copied: the copy that `__deepcopy__` makes of {name} is the module itself"
            )
    return twin


def _deep_copy(value: T, memo: dict[int, Any] | None) -> T:
    if not _asked.get() and (name := may_draw()):
        if any(type(module).__module__ == _NAMING for module in getattr(value, "modules", list)()):
            raise left_out(
                f"a copy of torch_geometric's Sequential draws its name from `random`, as the thread {name} may do meanwhile"
            )
        return copy.deepcopy(value, memo)
    state = random.getstate()
    random.seed()
    try:
        return copy.deepcopy(value, memo)
    finally:
        random.setstate(state)


def _torch_states() -> list[tuple[Any, Any]]:
    """(generator, its state) of the CPU and of every device in use; asking must neither import torch nor start CUDA."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    if (own := _own_draws()) is not None:
        generators = list(own.generators.values())
    else:
        generators = [torch.default_generator, *(torch.cuda.default_generators if torch.cuda.is_initialized() else ())]
    return [(generator, generator.get_state()) for generator in generators]
