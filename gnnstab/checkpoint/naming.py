"""Names found in a file: made printable, freed of wrappers, told apart from running statistics."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_NAME = 200
"""Characters of a key that are kept; a longer one is cut and marked."""

WRAPPERS_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and activation checkpointing put into the path of a wrapped submodule."""

STATISTICS = frozenset(
    [
        "running_mean",
        "running_var",
        "num_batches_tracked",
        "mean",
        "mean_sq",
        "var",
        "std",
        "stddev",
        "debiasing_term",
        "n_averaged",
        "count",
        "decay",
    ]
)
"""Last part of the key of a running statistic (batch norm, PopArt, observation normalisers, averaged models)."""

SHADOWS = frozenset(
    [
        "ema",
        "model_ema",
        "ema_model",
        "ema_state_dict",
        "state_dict_ema",
        "shadow",
        "shadow_params",
        "averaged",
        "swa_model",
    ]
)
"""Container names of an averaged copy of the weights."""


def printable(text: object, limit: int = LONGEST_NAME) -> str:
    """One line without control characters, lone surrogates or terminal escapes, cut at ``limit`` characters."""
    raw = text if isinstance(text, str) else str(text) if isinstance(text, (int, float, bool)) else type(text).__name__
    cut = raw[:limit]
    if not cut.isprintable():
        cut = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in cut
        )
    return cut + "…" if len(raw) > limit else cut


def unique(name: str, taken: Iterable[str]) -> str:
    """``name``, or ``name#2``, ``name#3``, … when it is taken."""
    taken = taken if isinstance(taken, (set, dict, frozenset)) else set(taken)
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}#{number}", number + 1
    return candidate


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
        shorter = [_without(name, wrapper) for name in current]
        if shorter != current and len(set(shorter)) == len(shorter):
            current = shorter
            removed.append(wrapper)
    while current and all(name.startswith("module.") and len(name) > 7 for name in current):
        current = [name[7:] for name in current]
        removed.append("module.")
    return current, removed


def _without(name: str, wrapper: str) -> str:
    """``name`` without the path component ``wrapper`` (which ends in a dot)."""
    if name.startswith(wrapper):
        name = name[len(wrapper) :]
    return name.replace("." + wrapper, ".")
