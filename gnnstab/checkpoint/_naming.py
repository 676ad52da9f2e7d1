"""Names found in a file: made printable, freed of wrappers, told apart from running statistics."""

from __future__ import annotations

from collections.abc import Collection

from gnnstab.errors import LONGEST_NAME as LONGEST_NAME
from gnnstab.errors import printable as printable

WRAPPERS_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the path of a wrapped submodule."""

STATISTICS = frozenset(
    [
        *("running_mean", "running_var", "num_batches_tracked", "mean", "mean_sq", "var", "std", "stddev"),
        *("debiasing_term", "n_averaged", "count", "decay"),
    ]
)
"""Last part of the key of a running statistic (batch norm, PopArt, observation normalisers, averaged models)."""

SHADOWS = frozenset(
    [
        *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"),
        *("shadow", "shadow_params", "averaged", "swa_model"),
    ]
)
"""Container names of an averaged copy of the weights."""


LONGEST_KEY = 2000
"""Characters of one key of a file that are kept, more than any path to a module has: layers are found by how names end."""


def key_of(key: object) -> str:
    """The key made printable; reports shorten what they show of it."""
    return printable(key, LONGEST_KEY)


class Unique:
    """Tells names apart: one that was given before becomes ``name#2``, ``name#3``, …."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        """A name that was not given yet."""
        candidate, number = name, self._next.get(name, 1)
        while candidate in self._next:
            number += 1
            candidate = f"{name}#{number}"
        # Counting goes on where it ended: thousands of names may be alike.
        self._next[candidate] = 1
        self._next[name] = number
        return candidate


def listed(names: Collection[str], most: int, rest: str = ", …") -> str:
    """The first ``most`` names, and ``rest`` where there are more; ``{}`` in it is how many."""
    shown = ", ".join(list(names)[:most])
    return shown + rest.format(len(names) - most) if len(names) > most else shown


def is_statistic(name: str) -> bool:
    """True for a buffer that records data rather than being trained."""
    return name.rpartition(".")[2] in STATISTICS


def unwrapped_names(names: list[str]) -> tuple[list[str], list[str]]:
    """The names without wrapper prefixes, and the prefixes that were removed.

    Nothing is removed when two names would become equal.
    """
    removed: list[str] = []
    current = names
    for wrapper in WRAPPERS_ANYWHERE:
        shorter = [name.removeprefix(wrapper).replace("." + wrapper, ".") for name in current]
        if shorter != current and len(set(shorter)) == len(shorter):
            current = shorter
            removed.append(wrapper)
    while current and all(name.startswith("module.") and len(name) > 7 for name in current):
        current = [name[7:] for name in current]
        removed.append("module.")
    return current, removed
