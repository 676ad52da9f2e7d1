"""Two states of one network: what grew between them, and towards which limit."""

import gnnstab.rich_loaded  # noqa: F401  # before the others
from gnnstab.compare._changes import Change as Change
from gnnstab.compare._changes import Comparison as Comparison
from gnnstab.compare._changes import compare as compare
from gnnstab.compare._rendering import render as render
