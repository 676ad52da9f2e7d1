"""Checkpoint file → facts.

`load` reads a file without running code from it, `recover` finds the attention layers and their numbers,
`informed` adds what a model says of them, `rebuild` makes layers to probe out of them, `load_into` puts the file's tensors into a model, `layers_in` says which of its layers these are, `recover_model` gives the
facts of a model in memory and `files_in` the files of a folder (`said`: what their names tell), of which `read_beside` reads those of optimizers. The names are resolved on
first use, so that `gnnstab.checkpoint.facts` can be imported without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnnstab.plugins import on_first_use

if TYPE_CHECKING:
    from gnnstab.checkpoint._file_names import said as said
    from gnnstab.checkpoint._folder import files_in as files_in
    from gnnstab.checkpoint._folder import is_optimizer as is_optimizer
    from gnnstab.checkpoint._live import informed as informed
    from gnnstab.checkpoint._live import recover_model as recover_model
    from gnnstab.checkpoint._loading import Beside as Beside
    from gnnstab.checkpoint._loading import Checkpoint as Checkpoint
    from gnnstab.checkpoint._loading import load as load
    from gnnstab.checkpoint._loading import read_beside as read_beside
    from gnnstab.checkpoint._matching import layers_in as layers_in
    from gnnstab.checkpoint._matching import load_into as load_into
    from gnnstab.checkpoint._rebuilding import rebuild as rebuild
    from gnnstab.checkpoint._recovery import recover as recover
    from gnnstab.checkpoint.facts import CheckpointFacts as CheckpointFacts
    from gnnstab.checkpoint.facts import Undecided as Undecided

__getattr__ = on_first_use(
    __name__,
    _loading="Beside Checkpoint load read_beside",
    facts="CheckpointFacts Undecided",
    _file_names="said",
    _folder="files_in is_optimizer",
    _matching="layers_in load_into",
    _recovery="recover",
    _live="informed recover_model",
    _rebuilding="rebuild",
)
