"""The report for programs: the diagnosis as JSON, schema 1 (docs/schema/diagnosis-1.json)."""

from __future__ import annotations

from collections.abc import Sequence

from gnnstab.records import Diagnosis


def render(diagnosis: Diagnosis, *, indent: int | None = 2) -> str:
    """One JSON object; ``indent=None`` for a single line."""
    return diagnosis.to_json(indent) + "\n"


def render_many(diagnoses: Sequence[Diagnosis], *, indent: int | None = 2) -> str:
    """A JSON array of such objects, in the order of the targets."""
    separator = ",\n" if indent is not None else ", "
    return "[" + separator.join(diagnosis.to_json(indent) for diagnosis in diagnoses) + "]\n"
