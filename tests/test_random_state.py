"""Every public function leaves the generators of torch, NumPy and `random` as they were, whatever the user's model draws from."""

import ast
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn import Sequential, TransformerConv

import gnnstab
from gnnstab import fixes
from gnnstab.compare import compare
from gnnstab.errors import GnnstabError, UsageError
from gnnstab.randomness import drawn_state, same_random_state
from gnnstab.testing import assert_stable
from gnnstab.verification import clamping
from gnnstab.verification.ladder import run_ladder
from gnnstab.verification.replay import replay
from gnnstab.verification.scaling import scale
from models.stacks import Stack, random_batch

SOURCE = Path(gnnstab.__file__).parent
SMALL = {"seeds": 1, "steps": 2}


class Restless(nn.Module):
    """Draws from all three generators in every forward, also in evaluation mode, as samplers and path dropping do."""

    def __init__(self):
        super().__init__()
        self.stack = Stack(2, heads=2, concat=False, edge_dim=None, dropout=0.2)

    def forward(self, x, edge_index):
        noise = np.random.rand() + random.random() + float(torch.rand(()))
        return self.stack(x * (1.0 + 1e-3 * noise), edge_index)


def objective(output, batch):
    return output.square().mean() + np.random.rand() + random.random() + float(torch.rand(()))


def broken():
    model = Restless()
    with torch.no_grad():
        model.stack.convs[0].lin_query.weight.mul_(30.0)
    return model


def given():
    batch = random_batch(12)
    return {"x": batch["x"], "edge_index": batch["edge_index"]}


def compared(model, batch):
    return compare(*(gnnstab.diagnose(model, batch=batch) for _ in range(2)))


CALLS = {
    "diagnose": lambda model, batch: gnnstab.diagnose(model, batch=batch, loss=objective),
    "attention": lambda model, batch: gnnstab.attention(model, batch),
    "verify": lambda model, batch: gnnstab.verify(model, ["dropout", "residual", "reinit-qk"], batch=batch, **SMALL),
    "prove": lambda model, batch: gnnstab.verification.prove(
        gnnstab.diagnose(model, batch=batch), model, batch=batch, **SMALL
    ),
    "run_ladder": lambda model, batch: run_ladder(
        model, batch=batch, rungs=[("dropout", ["dropout"])], sizes=(1, 2), **SMALL
    ),
    "scale": lambda model, batch: scale(model, batch=batch, factors=(1.0,), precisions=("fp32",), seeds=1),
    "clamping.compare": lambda model, batch: clamping.compare(model, batch=batch, fixes=["dropout"], factors=(1.0,)),
    "compare": compared,
    "replay": lambda model, batch: replay(model, (), {**batch, "x": batch["x"] * float("inf")}, fixes=["score-cap"]),
    "apply": lambda model, batch: fixes.apply(model, "residual"),
    "assert_stable": lambda model, batch: assert_stable(model, batch, objective, fail_on="error", select="GS4"),
}


def states():
    numbers = np.random.get_state()
    return torch.random.get_rng_state().tolist(), (numbers[0], numbers[1].tolist(), *numbers[2:]), random.getstate()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_generators_stay_where_they_were(call):
    model, batch = broken(), given()
    before = states()
    call(model, batch)
    assert states() == before


def in_a_row(layers):
    """torch_geometric's Sequential, whose generated forward bears a name that is drawn from `random`."""
    convs = [TransformerConv(16, 16) for _ in range(layers)]
    return Sequential("x, edge_index", [(conv, "x, edge_index -> x") for conv in convs]), convs


def watched(model, batch):
    with gnnstab.Monitor(model) as monitor:
        monitor.step(objective(model(**batch), batch))


@pytest.mark.parametrize("call", [*CALLS.values(), watched], ids=[*CALLS, "Monitor"])
def test_the_next_sequential_computes_its_own_layers(call):
    model, batch = in_a_row(1)[0], given()
    with suppress(GnnstabError):
        call(model, batch)
    following, convs = in_a_row(2)
    assert torch.equal(following(**batch), convs[1](convs[0](**batch), batch["edge_index"]))


def test_they_are_given_back_after_a_failure():
    model, batch = Restless(), {"x": torch.rand(3, 5), "edge_index": torch.zeros(2, 1, dtype=torch.long)}
    before = states()
    with pytest.raises(UsageError):
        gnnstab.diagnose(model, batch=batch)
    assert states() == before


def test_the_model_of_this_test_draws_from_all_of_them():
    before = states()
    with same_random_state():
        broken()(**given())
        assert all(a != b for a, b in zip(states(), before, strict=True))
    assert states() == before


def test_every_function_that_runs_a_model_is_tried_here():
    """Those that the package offers, and those of verification that take a batch by name, as its commands do."""
    offered = {name for name in gnnstab.__all__ if not isinstance(getattr(gnnstab, name), type)}
    found = offered - {"__version__", "fixes"}
    for path in (SOURCE / "verification").glob("*.py"):
        functions = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)]
        for node in functions:
            takes_batch = any(argument.arg == "batch" for argument in node.args.kwonlyargs)
            if takes_batch and not node.name.startswith("_"):
                found.add(f"clamping.{node.name}" if path.stem == "clamping" else node.name)
    assert found <= set(CALLS)


LATE = """
import os, random, sys
import torch, torch_geometric.nn
import gnnstab

def draws_nothing(code):
    assert "rich.style" not in sys.modules
    random.seed(0)
    before = random.getstate()
    exec(code)
    assert "rich.style" in sys.modules
    assert random.getstate() == before

for code in sys.argv[1:]:
    if (child := os.fork()) == 0:
        draws_nothing(code)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, code
"""


def test_what_is_loaded_late_draws_nothing():
    """Each in a process of its own, where nothing has been loaded yet."""
    diagnose = "print(gnnstab.diagnose(torch_geometric.nn.GATv2Conv(4, 4)))"
    subprocess.run([sys.executable, "-c", LATE, diagnose, "import gnnstab.watch", "import gnnstab.compare"], check=True)


class Counting(torch.nn.Module):
    """A weight that is read as it is, by a parametrisation that counts the readings in training."""

    def __init__(self):
        super().__init__()
        self.register_buffer("read", torch.zeros(()))

    def forward(self, weight):
        self.read += self.training
        return weight


@pytest.mark.parametrize(
    "parametrise",
    [
        torch.nn.utils.parametrizations.spectral_norm,
        lambda layer: torch.nn.utils.parametrize.register_parametrization(layer, "weight", Counting()),
    ],
    ids=["spectral_norm", "counting"],
)
def test_a_weight_that_is_computed_is_read_on_a_copy(parametrise):
    """torch_geometric's Linear computes such a weight for its state dict too."""
    model = TransformerConv(8, 8)
    parametrise(model.lin_key)
    parts = model.lin_key.parametrizations
    before = {name: tensor.clone() for name, tensor in parts.state_dict().items()}
    gnnstab.diagnose(model, batch={"x": torch.rand(3, 8), "edge_index": torch.tensor([[0, 1], [1, 2]])})
    after = parts.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.lin_key.parametrizations is parts


@pytest.fixture
def own_generator():
    """NumPy's global generator is its first again afterwards, whatever a test sets in its place."""
    first, state = np.random.get_bit_generator(), np.random.get_state()
    yield
    np.random.set_bit_generator(first)
    np.random.set_state(state)


@pytest.mark.parametrize("before", [np.random.rand, np.random.randn], ids=["nothing kept", "a number kept"])
@pytest.mark.parametrize(
    "draw", [np.random.rand, np.random.randn, lambda: np.random.seed(7)], ids=["rand", "randn", "seed"]
)
def test_what_is_drawn_from_numpy_within_is_told_and_given_back(draw, before, own_generator):
    before()
    with same_random_state():
        for _ in range(2):
            state, mark = states(), drawn_state()
            with same_random_state():
                assert drawn_state() == mark
                draw()
                np.random.rand()
                assert drawn_state() != mark
            assert states() == state
            assert drawn_state() == mark


def test_a_kept_number_that_is_used_up_within_is_kept_again():
    np.random.randn()
    with same_random_state():
        state = np.random.get_state()
        for _ in range(2):
            assert state[3] == 1
            with same_random_state():
                np.random.randn()
            assert np.random.get_state()[3:] == state[3:]


def test_a_generator_whose_memory_tells_nothing_is_asked(own_generator):
    np.random.set_bit_generator(np.random.PCG64(3))
    with same_random_state(), same_random_state():
        mark, number = drawn_state(), np.random.rand()
        assert drawn_state() != mark
    assert np.random.rand() == number


def test_numpy_is_asked_once_while_nothing_is_drawn(monkeypatch, own_generator):
    np.random.seed(0)  # No number is kept.
    own, asked = np.random.get_state, []
    monkeypatch.setattr(np.random, "get_state", lambda **how: asked.append(how) or own(**how))
    with same_random_state():
        for _ in range(3):
            with same_random_state():
                drawn_state()
    assert len(asked) == 1
