"""Diagnosis → text: one file per format, each with ``render(diagnosis, **options) -> str``."""

from gnnstab.report._rendering import FORMATS as FORMATS
from gnnstab.report._rendering import format_names as format_names
from gnnstab.report._rendering import holds_several as holds_several
from gnnstab.report._rendering import render as render
from gnnstab.report._rendering import supported as supported
