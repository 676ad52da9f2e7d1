"""The store of a run: one SQLite file, written beside the training and readable while it is written."""

from gnnstab.trace._arrays import SITE_DTYPE as SITE_DTYPE
from gnnstab.trace._arrays import STEP_DTYPE as STEP_DTYPE
from gnnstab.trace._paths import rank_files as rank_files
from gnnstab.trace._paths import rank_path as rank_path
from gnnstab.trace._reader import Trace as Trace
from gnnstab.trace._writer import TraceWriter as TraceWriter
