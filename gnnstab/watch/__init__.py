"""The live view of a run in a terminal: a snapshot of its trace, drawn as one frame, again and again."""

import gnnstab.rich_loaded  # noqa: F401  # before the others
from gnnstab.watch._frame import frame as frame
from gnnstab.watch._live import watch as watch
from gnnstab.watch._snapshot import Snapshot as Snapshot
from gnnstab.watch._snapshot import take as take
