"""Known findings: a file of fingerprints, so that a gate fails on new findings only.

A finding is known when the file has its fingerprint (code, layer, head and signal, not the number) at the same or a worse
severity: numbers may move and layers may be reordered, but a warning that becomes an error is new.
"""

from __future__ import annotations

import json
import reprlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gnnstab.errors import ConfigurationError
from gnnstab.records import SEVERITIES, Diagnosis, Finding, Suppressed

VERSION = "1"

LARGEST = 20_000_000
"""Bytes; about a hundred thousand findings."""

REASON = "known: stands in the baseline"


@dataclass(frozen=True, slots=True)
class Baseline:
    """Fingerprints of known findings."""

    severities: Mapping[str, str]
    """Fingerprint → worst severity at which the finding is known."""

    def knows(self, finding: Finding) -> bool:
        """True for a finding that is known at this severity."""
        known = self.severities.get(finding.fingerprint)
        return known is not None and SEVERITIES.index(finding.severity) <= SEVERITIES.index(known)

    def apply(self, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis with its known findings suppressed."""
        withheld = [Suppressed(f, REASON, "baseline") for f in diagnosis.findings if self.knows(f)]
        return diagnosis.suppress(withheld) if withheld else diagnosis


def dump(diagnoses: Iterable[Diagnosis]) -> str:
    """The findings of these diagnoses as the text of a baseline file: sorted, so that a change of it reads well."""
    worst: dict[str, Finding] = {}
    for finding in (f for d in diagnoses for f in d.findings):
        known = worst.get(finding.fingerprint)
        if known is None or SEVERITIES.index(finding.severity) > SEVERITIES.index(known.severity):
            worst[finding.fingerprint] = finding
    ordered = sorted(worst.values(), key=lambda f: (f.code, f.layer or "", -1 if f.head is None else f.head, f.signal))
    entries = [
        {
            "fingerprint": f.fingerprint,
            "severity": f.severity,
            "code": f.code,
            "layer": f.layer,
            "head": f.head,
            "signal": f.signal,
        }
        for f in ordered
    ]
    # ASCII keeps lone surrogates of file names, which UTF-8 cannot carry.
    return json.dumps({"schema_version": VERSION, "findings": entries}, indent=2) + "\n"


def read(path: Path) -> Baseline:
    """Read a baseline file.

    Raises `ConfigurationError` when it does not exist or is anything else than a baseline.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ConfigurationError(f"baseline {path}: is not a regular file")
        if state.st_size > LARGEST:
            raise ConfigurationError(f"baseline {path}: larger than {LARGEST} bytes")
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigurationError(f"baseline {path} does not exist; --update-baseline writes it") from error
    except OSError as error:
        raise ConfigurationError(f"baseline {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"baseline {path}: not valid JSON: {' '.join(str(error).split())}") from error
    return Baseline(_entries(document, path))


def _entries(document: Any, path: Path) -> dict[str, str]:
    if not isinstance(document, dict) or not isinstance(document.get("findings"), list):
        raise ConfigurationError(f"baseline {path}: not a baseline of gnnstab (no list of findings)")
    if {"target", "coverage"} <= document.keys():
        raise ConfigurationError(f"baseline {path}: not a baseline of gnnstab but a report of it (--output json=)")
    if document.get("schema_version") != VERSION:
        raise ConfigurationError(
            f"baseline {path}: version {reprlib.repr(document.get('schema_version'))} is not {VERSION!r}; update gnnstab"
        )
    severities: dict[str, str] = {}
    for position, entry in enumerate(document["findings"], start=1):
        fingerprint = entry.get("fingerprint") if isinstance(entry, dict) else None
        severity = entry.get("severity") if isinstance(entry, dict) else None
        if not isinstance(fingerprint, str) or severity not in SEVERITIES:
            raise ConfigurationError(f"baseline {path}: finding {position} has no fingerprint or no valid severity")
        severities[fingerprint] = severity
    return severities
