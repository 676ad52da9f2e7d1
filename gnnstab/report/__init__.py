"""Diagnosis → text: one file per format, each with ``render(diagnosis, **options) -> str``."""

FORMATS: dict[str, str] = {
    "text": "gnnstab.report.text",
    "json": "gnnstab.report.json",
    "sarif": "gnnstab.report.sarif",
    "junit": "gnnstab.report.junit",
    "github": "gnnstab.report.github",
    "markdown": "gnnstab.report.markdown",
    "html": "gnnstab.report.html",
}
"""Format name → module, imported when the format is asked for."""

from gnnstab.report.rendering import format_names as format_names  # noqa: E402
from gnnstab.report.rendering import render as render  # noqa: E402
from gnnstab.report.rendering import supported as supported  # noqa: E402
