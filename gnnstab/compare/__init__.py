"""Two states of one network: what grew between them, and towards which limit."""

from gnnstab.compare.changes import Change as Change
from gnnstab.compare.changes import Comparison as Comparison
from gnnstab.compare.changes import compare as compare
from gnnstab.compare.rendering import render as render
