"""Checkpoint file → facts.

`load` reads a file without running code from it, `recover` finds the attention layers and their numbers,
`informed` adds what a model says of them, `rebuild` makes layers to probe out of them, `load_into` puts the file's tensors into a model, `recover_model` gives the
facts of a model in memory and `checkpoints_in` the files of a folder. The names are resolved on
first use, so that `gnnstab.checkpoint.facts` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnnstab.checkpoint._folder import checkpoints_in as checkpoints_in
    from gnnstab.checkpoint._live import informed as informed
    from gnnstab.checkpoint._live import recover_model as recover_model
    from gnnstab.checkpoint._loading import Checkpoint as Checkpoint
    from gnnstab.checkpoint._loading import load as load
    from gnnstab.checkpoint._matching import load_into as load_into
    from gnnstab.checkpoint._rebuilding import rebuild as rebuild
    from gnnstab.checkpoint._recovery import recover as recover
    from gnnstab.checkpoint.facts import CheckpointFacts as CheckpointFacts
    from gnnstab.checkpoint.facts import Undecided as Undecided

_HOMES = {
    "Checkpoint": "_loading",
    "CheckpointFacts": "facts",
    "Undecided": "facts",
    "checkpoints_in": "_folder",
    "informed": "_live",
    "load": "_loading",
    "load_into": "_matching",
    "recover": "_recovery",
    "recover_model": "_live",
    "rebuild": "_rebuilding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
