"""Places in a trace's metadata, ours and a stranger's."""

from __future__ import annotations

import json

import pytest

from gnnstab.signals._places import place_signals


def test_rows_become_signals() -> None:
    rows = [["place.rms", "edge_attr", 200.5, {"fed": ["conv"]}], ["place.post_norms", "n", 3, {}]]
    held = {"count": 2, "parameters": ["a", "b"], "share": 0.1}
    one, two, three = place_signals({"places": json.dumps(rows), "not_held": json.dumps(held)}, "training")
    assert (one.name, one.layer, one.value, one.source) == ("place.rms", "edge_attr", 200.5, "training")
    assert one.detail["fed"] == ["conv"] and two.value == 3.0
    assert three.name == "place.not_held" and three.value == 2.0 and three.layer is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "{}",
        "[1, [], [1, 2, 3, 4]]",
        '[["loss", "x", 1.0, {}]]',
        '[["place.unknown", "x", 1.0, {}]]',
        '[["place.rms", "x", true, {}]]',
        '[["place.rms", "x", ' + "9" * 400 + ", {}]]",
        "[" * 100_000,
    ],
)
def test_what_is_not_ours_is_left_out(text: str) -> None:
    assert place_signals({"places": text, "not_held": text}, "training") == []
