"""A sink that writes down what it is told."""

from __future__ import annotations

from collections.abc import Mapping

from gnnstab.records import Diagnosis, Finding


class Notes:
    """Writes down what it is told."""

    def __init__(self, broken: str = "") -> None:
        self.told: list[tuple[str, object]] = []
        self.values: dict[int, dict[str, float]] = {}
        self._broken = broken

    def _note(self, method: str, what: object) -> None:
        if method == self._broken:
            raise ConnectionError("the service\nis away")
        self.told.append((method, what))

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        self._note("on_step", step)
        self.values[step] = dict(values)

    def on_finding(self, finding: Finding) -> None:
        self._note("on_finding", finding.code)

    def on_end(self, diagnosis: Diagnosis) -> None:
        self._note("on_end", diagnosis.target.kind)
