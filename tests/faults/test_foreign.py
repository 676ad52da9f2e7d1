"""The scorer of strangers' programs counts what its table says; a made-up set of three programs has known counts."""

from __future__ import annotations

from tests.benchmarks.foreign import FACES, score


def said(*roots: str, loud: tuple[str, ...] = (), text: str = "") -> dict[str, dict[str, object]]:
    return {face: {"roots": list(roots), "loud": list(loud), "text": text} for face in FACES}


def test_counts_of_a_made_up_set() -> None:
    asked = ["monitor", "diagnose"]
    rows = [
        {
            "name": "right",
            "truth": {"roots": ["precision"], "never": [], "faces": asked, "says": ["float16"]},
            "faulty": said("precision", loud=("GS503",), text="float16 overflows"),
            "twin": said(),
        },
        {
            "name": "blamed",
            "truth": {"roots": ["masking"], "never": ["precision"], "faces": asked, "says": []},
            "faulty": {**said("precision", loud=("GS503",)), "diagnose": said("masking")["diagnose"]},
            "twin": said(loud=("GS301",)),
        },
        {
            "name": "healthy",
            "truth": {"roots": [], "never": [], "faces": list(FACES), "says": []},
            "faulty": {**said(), "checkpoint": said(loud=("GS604",))["checkpoint"]},
            "twin": said(),
        },
    ]
    lines = list(score(rows))
    assert "monitor: root first 1 of 2, healthy flagged 0 of 1, twins 1 of 2" in lines
    assert "diagnose: root first 2 of 2, healthy flagged 0 of 1, twins 1 of 2" in lines
    assert "checkpoint: root first 0 of 0, healthy flagged 1 of 1, twins 1 of 2" in lines
    assert "Monitor and diagnose name the same first root cause (or none) in 1 of 2" in lines
    assert "blamed: monitor: blames precision" in lines
    # precision: found twice, named falsely once; masking: found by one of two faces
    assert "F1 by cause: masking 0.67, precision 0.80" in lines
    assert lines[-1] == "macro-F1 0.73; all right in 1 of 3"
