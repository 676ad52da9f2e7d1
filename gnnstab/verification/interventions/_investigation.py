"""What undoing the suspects has shown, as a record that a trace can keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gnnstab.records import Finding
from gnnstab.verification.interventions._symptoms import Symptom, symptoms_in
from gnnstab.verification.interventions._trial import Edit, Trial

TRIED = frozenset(
    {
        "feature-scale",
        "precision",
        "normalization-misuse",
        "sum-aggregation",
        "unsuitable-init",
        "attention-explosion",
        "dead-units",
        "no-residual",
        "active-clamp",
    }
)
"""Causes that the table can undo; of others an intervention says nothing."""

ROOT = 0.5
"""Share of the way back from which on a suspect is the root of a symptom."""

CONTRIBUTES = 0.25
"""Share from which on it contributes; the same as that below which a fix is said to have no effect."""

EARNED = 0.05
"""Relative rise of the loss under softer scores from which on the sharpness is called earned."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One suspect, undone, and what became of every symptom."""

    trial: Trial
    shares: tuple[float, ...]
    """Share of the way back to the healthy band, one per symptom; NaN without meaning."""

    after: tuple[float, ...]
    """The symptoms' values with the suspect undone."""


@dataclass(frozen=True, slots=True)
class Investigation:
    """The symptoms that were measured again, and what undoing each suspect did to them."""

    symptoms: tuple[Symptom, ...]
    before: tuple[float, ...]
    tried: tuple[Tried, ...]
    untried: frozenset[str] = frozenset()
    """Causes that may be suspects and could not be undone: the numbers that show them, or a place for the edit, are missing."""

    rate: Finding | None = None
    """The finding that shows what has made the weights so: a rate that is too high for this model, memory that nobody wrote."""

    losses: tuple[float, float] | None = None
    """The user's loss as it is and with softer attention, where sharp attention was learned."""

    excuse: str = ""
    """Why sharp attention of weights that nobody knows to be fresh is not blamed, in a sentence; empty where it may be."""

    @property
    def earned(self) -> str:
        """In words, when softer attention makes the user's loss worse, or nothing speaks against it; else empty."""
        before, after = self.losses or (0.0, 0.0)
        if not after - before > EARNED * abs(before):
            return self.excuse
        softer = f"Softer scores on a copy raise your loss from {before:.3g} to {after:.3g}"
        return f"{softer}: the sharpness is earned, and nothing is to be changed about it."


_WORDS = ("name", "cause", "words", "suspect", "place")


def kept(found: Investigation) -> dict[str, Any]:
    """The investigation as plain values; `restored` is the way back."""
    return {
        "symptoms": [symptom.finding.fingerprint for symptom in found.symptoms],
        "before": list(found.before),
        "tried": [
            {
                **{word: getattr(one.trial, word) for word in _WORDS},
                "deviates": one.trial.deviates,
                "also": one.trial.also,
                "shares": list(one.shares),
                "after": list(one.after),
            }
            for one in found.tried
        ],
        "untried": sorted(found.untried),
        "rate": None if found.rate is None else found.rate.fingerprint,
        "losses": None if found.losses is None else list(found.losses),
        "excuse": found.excuse,
    }


def restored(plain: Any, findings: Sequence[Finding]) -> Investigation | None:
    """The investigation that `kept` gave, of those symptoms that are still among the findings; None where it is none.

    A trace may come from a stranger, and may have been diagnosed with fewer rules.
    """
    try:
        return _restored(plain, findings)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _restored(plain: Mapping[str, Any], findings: Sequence[Finding]) -> Investigation | None:
    places = {str(mark): i for i, mark in enumerate(plain["symptoms"])}
    symptoms = tuple(s for s in symptoms_in(findings) if s.finding.fingerprint in places)
    columns = [places[symptom.finding.fingerprint] for symptom in symptoms]

    def own(numbers: Any) -> tuple[float, ...]:
        return tuple(float(numbers[i]) for i in columns)

    tried = tuple(
        Tried(
            Trial(
                **{word: str(one[word]) for word in _WORDS},
                edit=Edit(),
                deviates=bool(one["deviates"]),
                also=str(one.get("also", "")),
            ),
            own(one["shares"]),
            own(one["after"]),
        )
        for one in plain["tried"]
    )
    rate = next((f for f in findings if f.fingerprint == plain["rate"]), None)
    losses = None if plain["losses"] is None else (float(plain["losses"][0]), float(plain["losses"][1]))
    untried = frozenset(str(cause) for cause in plain["untried"])
    return Investigation(symptoms, own(plain["before"]), tried, untried, rate, losses, str(plain.get("excuse", "")))
