"""The table of the output formats."""

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
