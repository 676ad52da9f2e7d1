"""The live view of a run in a terminal: a snapshot of its trace, drawn as one frame, again and again."""

from gnnstab.watch.frame import frame as frame
from gnnstab.watch.live import watch as watch
from gnnstab.watch.snapshot import Snapshot as Snapshot
from gnnstab.watch.snapshot import take as take
