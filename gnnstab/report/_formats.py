"""The table of the output formats."""

FORMATS: dict[str, str] = {
    "text": "gnnstab.report._text",
    "json": "gnnstab.report._json",
    "sarif": "gnnstab.report._sarif",
    "junit": "gnnstab.report._junit",
    "github": "gnnstab.report._github",
    "markdown": "gnnstab.report._markdown",
    "html": "gnnstab.report.html",
}
"""Format name → module, imported when the format is asked for."""
