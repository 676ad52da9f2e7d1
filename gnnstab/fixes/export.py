"""A repaired state dict, for the edits that keep what the weights mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnstab.errors import FixError, UsageError
from gnnstab.layers import LAYERS

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHT_EDITS = ("qk-clip",)
"""Fixes that change numbers of existing tensors and nothing else."""


def export(source: nn.Module | dict[str, Tensor], name: str, path: str | Path, **options: Any) -> Path:
    """Write a state dict with the edit to ``path`` and return it; ``source`` itself is untouched.

    Args:
        source: A model, or a state dict whose keys are module paths plus parameter names.
        name: ``qk-clip``.
        path: File to write; refused when it exists, so that no checkpoint is overwritten.
        **options: Those of the fix; for a state dict ``scores`` and ``degree``, or ``signals``.

    Raises:
        FixError: The fix is no weight edit, or needs numbers that were not given.
        UsageError: The file exists, also as a link to nothing, or cannot be written.
    """
    import torch

    from gnnstab.fixes.table import check_options, find

    fix = find(name)
    if name not in WEIGHT_EDITS:
        raise FixError(f"{name} changes code or training, not weights; only {', '.join(WEIGHT_EDITS)} can be exported")
    check_options(name, options)
    path = Path(path)
    if isinstance(source, dict):
        state = _clipped(source, fix.factors(**options))  # type: ignore[attr-defined]
    else:
        state = fix.apply(source, **options).state_dict()
    if bad := [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise FixError(f"{path} was not written: {bad[0]} would hold NaN or Inf, and no such file is repaired")
    try:
        # Made new: neither an older file nor what a link points to, there or not, is ever written.
        with path.open("xb") as stream:
            torch.save(state, stream)
    except FileExistsError:
        raise UsageError(f"{path} exists; give a new file, gnnstab overwrites no checkpoint") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _clipped(state: dict[str, Tensor], factors: dict[str, list[float]]) -> dict[str, Tensor]:
    changed = dict(state)
    for layer, gammas in factors.items():
        own = {name.removeprefix(f"{layer}."): t for name, t in state.items() if name.startswith(f"{layer}.")}
        kind = next((kind for kind in LAYERS if kind.complete(frozenset(own))), None)
        if kind is None:
            raise FixError(
                f"{layer} is no attention layer of the state dict; the scores were measured under other layer names"
            )
        changed |= {f"{layer}.{name}": tensor for name, tensor in kind.scaled(own, gammas).items()}
    return changed
