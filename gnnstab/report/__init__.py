"""Diagnosis → text: one file per format, each with ``render(diagnosis, **options) -> str``."""

from gnnstab.report.formats import FORMATS as FORMATS
from gnnstab.report.rendering import format_names as format_names
from gnnstab.report.rendering import render as render
from gnnstab.report.rendering import supported as supported
