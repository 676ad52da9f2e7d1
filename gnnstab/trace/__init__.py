"""The store of a run: one SQLite file, written beside the training and readable while it is written."""

from gnnstab.trace.arrays import SITE_DTYPE as SITE_DTYPE
from gnnstab.trace.arrays import STEP_DTYPE as STEP_DTYPE
from gnnstab.trace.paths import rank_files as rank_files
from gnnstab.trace.paths import rank_path as rank_path
from gnnstab.trace.reader import Trace as Trace
from gnnstab.trace.writer import TraceWriter as TraceWriter
