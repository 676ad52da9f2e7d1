"""The ladder: cumulative, through the user's own training function, honest about rungs without effect."""

import math

import pytest
import torch

from gnnstab.errors import UsageError
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.verification._growth import find_graph_call, in_degrees
from gnnstab.verification.clamping import compare
from gnnstab.verification.ladder import DOCUMENT_ORDER, Ladder, Larger, Rung, run_ladder
from gnnstab.verification.wording import ladder_text, sides_text
from models.informarl import actor, sample_batch
from models.stacks import Hetero, Stack, hetero_batch, random_batch

RUNGS = (
    ("+ small residual", ["residual:weight=0.1"]),
    ("+ pre-norm", ["pre-norm-residual"]),
    ("+ sum", ["norm-after-sum"]),
)


def train(model, *, seed, **settings):
    """A training function as a user would write it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.get("lr", 1e-3))
    losses = []
    for _ in range(2):
        loss = model(**random_batch(16, 5, 8)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_says_at_which_rung_it_becomes_stable_and_which_did_nothing():
    torch.manual_seed(0)
    model = Stack(14, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rungs = (RUNGS[0], RUNGS[1], RUNGS[2])
    found = run_ladder(model, batch=random_batch(16, 5, 8), train=train, rungs=rungs, seeds=1)
    baseline, small, normed, last = found.rungs
    assert (baseline.stable, small.stable, normed.stable) == (False, False, True)
    assert small.helped is False
    assert normed.helped is True
    assert found.stable_from is normed
    assert found.without_effect == (small,)
    assert normed.fixes == ("residual(weight=0.1)", "pre-norm-residual")
    assert last.error.startswith("Stack has no module that aggregates")
    assert last.fixes == normed.fixes
    assert "train, 2 losses" in found.objective
    assert math.isfinite(normed.loss)
    text = ladder_text(found)
    assert "Stable from the rung “+ pre-norm” on." in text
    assert "Did nothing: + small residual." in text
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("stable", [(), (3, 4, 6), (7,), range(8)])
def test_the_short_text_fits_a_screen_and_ends_with_the_summary(stable):
    codes = ("GS104", "GS201", "GS301", "GS302", "GS401", "GS404", "GS501", "GS601", "GS702", "GS704")
    names = ("baseline", *(name for name, _ in DOCUMENT_ORDER))
    rungs = tuple(
        Rung(name, (), i in stable, i in stable, 0.5, 1.0, () if i in stable else codes) for i, name in enumerate(names)
    )
    larger = [Larger(s, 2 * s, names[-1], s < 50, 1.0, codes, "a task") for s in (10, 20, 50, 100, 200) if stable]
    ladder = Ladder(rungs, "attention.entropy", "a synthetic task", tuple(larger))
    lines = ladder_text(ladder).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 80
    summary = " ".join(lines[-2:])
    whole = ladder_text(ladder, verbose=True)
    assert whole.splitlines()[-1].endswith(summary.split(". ")[-1])
    assert ("is stable at size 200" in summary) == bool(stable)
    unstable = [name for i, name in enumerate(names) if stable and min(stable) < i and i not in stable]
    assert all(f"“{name}”" in whole.splitlines()[-1] for name in unstable)
    assert "a synthetic task" in whole


def test_a_batch_that_is_kept_from_the_training_makes_no_stable_rung_where_it_holds_a_nan():
    torch.manual_seed(0)
    batches = [random_batch(16, 5, 16) for _ in range(4)]

    def of_output(output, batch):
        return output.square().mean()

    for _ in range(2):
        (baseline,) = run_ladder(Stack(1), batch=batches, loss=of_output, rungs=RUNGS[1:2], seeds=1, steps=3, sizes=(1,)).rungs[:1]  # fmt: skip
        assert math.isfinite(baseline.loss) == torch.isfinite(batches[3]["x"]).all()
        assert baseline.stable <= math.isfinite(baseline.loss)
        batches[3]["x"][0, 0] = math.nan


def test_the_documents_order():
    assert [name for name, _ in DOCUMENT_ORDER] == [
        "+ dropout + beta",
        "+ residual",
        "+ initialisation",
        "+ learning rate",
        "+ GraphNorm",
        "+ score cap",
        "+ aggregation",
    ]
    with pytest.raises(UsageError, match="at least one rung"):
        run_ladder(Stack(2, 8), batch=random_batch(8, 3, 8), rungs=())


def test_the_clamp_beside_the_proper_fixes():
    sides = compare(
        Stack(2, 8),
        batch=random_batch(16, 5, 8),
        fixes=["activation-clamp:limit=0.01", "norm-after-sum"],
        factors=(1, 2),
    )
    plain, clamp, refused = sides
    assert plain.clipped is None
    assert clamp.clipped > 0.5
    assert clamp.forward_time > 0
    assert plain.stable_up_to > 0
    assert "no module that aggregates" in refused.error
    assert "activation-clamp" in sides_text(sides)


def mean_in_degree(model, batch):
    call = find_graph_call(model, as_arguments(batch, model)[0])
    return in_degrees((call.args, call.kwargs))[0]


def test_the_first_stable_rung_is_tried_on_larger_graphs_and_those_above_it_where_it_fails():
    torch.manual_seed(0)
    model, batch = actor(), sample_batch(7)
    degree = mean_in_degree(model, batch)
    rungs = (("+ depth", ["depth-init"]), ("+ norm", ["norm-after-sum"]))
    found = run_ladder(model, batch=batch, rungs=rungs, seeds=1, steps=3, sizes=(7, 14, 70))
    assert [(r.name, r.stable) for r in found.rungs] == [("baseline", False), ("+ depth", True), ("+ norm", True)]
    tried = [(at.size, at.rung, at.stable) for at in found.larger]
    assert tried == [(14, "+ depth", False), (14, "+ norm", True), (70, "+ norm", True)]
    assert "GS401" in found.larger[0].codes
    assert [round(at.degree / degree) for at in found.larger] == [2, 2, 10]
    assert all(math.isfinite(at.loss) for at in found.larger)
    text = ladder_text(found)
    assert "Holds up to size 70 with “+ norm”." in text
    assert found.not_scaled == ""


def test_nothing_larger_without_a_stable_rung_or_with_one_size():
    torch.manual_seed(0)
    model = Stack(14, 8)
    unstable = run_ladder(model, batch=random_batch(16, 5, 8), rungs=RUNGS[:1], seeds=1, steps=1)
    assert (unstable.stable_from, unstable.larger, unstable.not_scaled) == (None, (), "")
    single = run_ladder(Stack(2, 8), batch=random_batch(16, 5, 8), rungs=RUNGS[1:2], seeds=1, steps=1, sizes=(7,))
    assert single.stable_from is not None
    assert single.larger == ()
    with pytest.raises(UsageError, match="positive"):
        run_ladder(model, batch=random_batch(16, 5, 8), sizes=(7, -1))


def test_a_training_function_that_takes_agents_is_called_with_them():
    asked = []

    def sized(model, *, seed, agents=7, **settings):
        asked.append(agents)
        return [0.5] if agents < 50 else [math.nan]

    case = {"batch": random_batch(16, 5, 8), "rungs": RUNGS[1:2], "seeds": 1}
    found = run_ladder(Stack(2, 8), train=sized, **case)
    assert asked == [7, 7, 10, 50, 50]
    assert [(at.size, at.rung, at.stable) for at in found.larger] == [
        (10, "baseline", True),
        (50, "baseline", False),
        (50, "+ pre-norm", False),
    ]
    assert "No rung is stable at size 50." in ladder_text(found)
    blind = run_ladder(Stack(2, 8), train=train, **case, steps=2)
    assert {at.objective.split(":")[0] for at in blind.larger} == {"a synthetic task"}


def test_a_model_without_one_graph_says_that_it_is_not_scaled():
    model, batch = Hetero(), hetero_batch()
    found = run_ladder(model, batch=batch, rungs=(("+ dropout", ["dropout"]),), seeds=1, steps=1)
    assert found.stable_from is not None
    assert found.larger == ()
    assert "homogeneous graph" in found.not_scaled
    assert "Not tried on larger graphs: no module is called" in ladder_text(found)
    # The task is made of both kinds of nodes, and read out where the same relation ends.
    assert found.objective.endswith("layers.2.convs.<user___rates___item>'s output")
    assert math.isfinite(found.rungs[0].loss)


@pytest.mark.parametrize("at", [1, 5, 7], ids=["first rung", "size 10", "size 50"])
def test_an_interrupted_ladder_says_nothing_of_stability(at):
    told = []

    def stop(line):
        told.append(line)
        if len(told) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_ladder(Stack(2, 8), batch=random_batch(16, 5, 8), rungs=RUNGS[1:2], seeds=2, steps=1, progress=stop)
    assert len(told) == at
