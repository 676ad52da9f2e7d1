"""Where a value first stopped being a number is told by the user's own layers and lines."""

from __future__ import annotations

from gnnstab.records import Event, LayerFacts
from gnnstab.rules.event_place import event_place, place_of

LAYERS = tuple(
    LayerFacts(name, "GATConv", i, True, (4, 4), 4, 1, False, 0.0) for i, name in enumerate(("enc.a", "enc.b"))
)


def event(layer, **detail):
    return Event(7, "non-finite", layer, stage="input", origin="came-in", detail=detail)


def test_a_part_of_a_layer_goes_by_the_name_of_the_layer_and_the_line_that_made_the_value():
    made = {"made_here": True, "place": "model", "module": "enc.b", "line": 22, "file": "/home/me/train.py"}
    assert (
        event_place(event("enc.b.aggr_module", operation=made), LAYERS) == "enc.b, step 7, made in line 22 of train.py"
    )
    before = "the output of enc.b.lin_r"
    assert place_of(event("enc.b.aggr_module", finite_before=before), LAYERS) == (
        "enc.b", "made within it, behind the output of enc.b.lin_r",
    )  # fmt: skip
    assert place_of(event("enc.b.aggr_module"), LAYERS) == ("enc.b", "made within it")


def test_what_came_in_with_the_batch_or_was_made_in_a_stage_is_told_as_such():
    assert event_place(event(None), LAYERS) == "the model, stage input, step 7, came in with its input"
    assert place_of(event("enc.a"), LAYERS) == ("enc.a, stage input", "came in with its input")
    own = {"made_here": True, "place": "model", "module": "enc.b", "line": 22, "file": "train.py"}
    scored = Event(7, "non-finite", "enc.b", stage="score", origin="made-here", heads=(1,), detail={"operation": own})
    assert event_place(scored, LAYERS) == "enc.b, stage score, head 1, step 7, made here"
