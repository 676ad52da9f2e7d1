"""The state of NumPy's global generator, which takes NumPy far longer to tell and to set than a step of a small model takes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_KEY = 624 * 4
_SIZE = _KEY + ctypes.sizeof(ctypes.c_int)
"""Bytes of a Mersenne Twister: 624 words, and how many of them are used up."""

_read: tuple[int, bytes, dict[str, Any]] = (0, b"", {})
"""Address, memory and state of the generator that was asked last, without a second Gaussian number that it keeps."""


def numpy_state(within: bool) -> Callable[[], None] | None:
    """The call that puts back the state of now; None where nobody has loaded the generators: asking would load them.

    ``within``: what has run since the last call are copies of the user's, whose beginning is put back in any case; a state
    is then not asked for and not set again where the memory of the generator is as it was.
    """
    if "numpy.random" not in sys.modules:
        return None
    address, memory = _memory()
    state = _read[2] if within and memory and (address, memory) == _read[:2] else _state(address, memory)

    def put_back() -> None:
        # A number that is kept is given away without a trace in the memory.
        if not (within and memory and not state["has_gauss"] and _memory() == (address, memory)):
            np.random.set_state(state)

    return put_back


def drawn_from_numpy() -> object:
    """What tells whether a number was drawn from NumPy's generator in between: equal before and after where none was."""
    if "numpy.random" not in sys.modules:
        return None
    address, memory = _memory()
    if memory and address == _read[0]:
        return memory
    state = _state(address, memory).get("state", {})
    return [value.tobytes() if isinstance(value, np.ndarray) else value for value in state.values()]


def _memory() -> tuple[int, bytes]:
    """Address and content of the memory of a Mersenne Twister; nothing of another kind of generator."""
    generator = vars(np.random)["get_bit_generator"]()
    if type(generator) is not np.random.MT19937:
        return 0, b""
    address = generator.ctypes.state_address
    return address, ctypes.string_at(address, _SIZE)


def _state(address: int, memory: bytes) -> dict[str, Any]:
    """The state as NumPy tells it, which is kept if it is what the memory shows."""
    global _read
    state = np.random.get_state(legacy=False)
    if memory and not state["has_gauss"]:
        told = state["state"]
        if memory == told["key"].tobytes() + int(told["pos"]).to_bytes(_SIZE - _KEY, sys.byteorder):
            _read = address, memory, state
    return state
