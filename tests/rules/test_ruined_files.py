"""One set of weights, saved alone or beside the optimizer's state, with a batch and a loss or without: what is known more never excuses more."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, TransformerConv

import gnnstab
from gnnstab.records import Diagnosis
from gnnstab.report.summary import state

NODES, EDGES, CLASSES = 120, 960, 4


class Net(nn.Module):
    """Three layers of attention as PyG draws them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = TransformerConv(8, 16, heads=4), TransformerConv(64, 16, heads=4)
        self.three, self.head = GATConv(64, 16, heads=2), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(N, 4) logits of (N, 8) features."""
        x = self.two(self.one(x, edge_index).relu(), edge_index).relu()
        return self.head(self.three(x, edge_index).relu())  # type: ignore[no-any-return]


_DRAWS = torch.Generator().manual_seed(0)
DATA = {
    "x": torch.randn(NODES, 8, generator=_DRAWS),
    "edge_index": torch.randint(0, NODES, (2, EDGES), generator=_DRAWS),
}
TARGETS = DATA["x"][:, :CLASSES].argmax(1)


def cost(output: Tensor, batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(output, TARGETS)


@pytest.fixture(scope="module", params=[1.0, 0.01], ids=["ruined", "learned"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Path, Path, float]:
    """(ruined, the file of the weights, that with the optimizer's state, last loss) of 60 steps of Adam."""
    torch.manual_seed(0)
    model, folder = Net(), tmp_path_factory.mktemp("files")
    optimizer = torch.optim.Adam(model.parameters(), lr=request.param)
    for _ in range(60):
        optimizer.zero_grad()
        loss = cost(model(**DATA))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    torch.save(model.state_dict(), folder / "bare.pt")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "full.pt")
    return request.param == 1.0, folder / "bare.pt", folder / "full.pt", float(loss.detach())


@functools.cache
def judged(path: Path, batch: bool = False, loss: Any = None) -> Diagnosis:
    """The diagnosis of a file, alone or with the model, a batch and a loss; several tests read the same."""
    return gnnstab.diagnose(path, **({"model": Net, "batch": DATA, "loss": loss} if batch else {}))


def verdicts(found: Diagnosis) -> tuple[set[str], set[str]]:
    """Root causes, and the causes of findings of at least a warning."""
    roots = {cause.cause for cause in found.root_causes()}
    return roots, {str(f.cause) for f in found.findings if f.severity != "info"}


def test_a_softmax_without_gradient_is_no_sharpness_that_training_found(files: Any) -> None:
    ruined, bare, full, _ = files
    for path in (bare, full):
        found = judged(path)
        assert ("attention-explosion" in verdicts(found)[1]) == ruined, path
        looks = [c for c in found.causes if c.cause == "unsuitable-init"]
        assert looks[0].status == "not-evaluable" and "unknown" in looks[0].reason
    assert ("passes no gradient back" in " ".join(f.message for f in found.findings)) == ruined


def test_the_rate_that_stands_in_the_file_is_the_cause(files: Any) -> None:
    ruined, _, full, _ = files
    for given in ((), (True,), (True, cost)):
        assert verdicts(judged(full, *given))[0] == ({"learning-rate"} if ruined else set()), given


def test_a_model_that_has_learned_is_not_blamed(files: Any) -> None:
    ruined, bare, full, last = files
    assert ruined == (last > 1)
    for path in (bare, full):
        for loss in (None, cost):
            found = judged(path, True, loss)
            assert bool(verdicts(found)[1]) == ruined, (path, loss)
            told = [f.message for f in found.findings if f.code in ("GS301", "GS302")]
            assert ruined or told, "sharp attention is told as information"
            # Beside an optimizer the weights are known to be trained: softer scores are tried there, and lose.
            said = ("has learned", "the sharpness is earned") if loss else ("your loss tells",)
            assert ruined or all(any(words in one for words in said) for one in told)
            # Without a loss nobody knows whether it is of use: that is not seen, and the model not called stable.
            assert ruined or state(found) == ("stable" if loss else "nothing-found")
            assert ("whether its sharp attention is of use" in str(found)) is (not ruined and loss is None)


def test_how_weights_were_drawn_is_no_cause_where_their_shape_shows_training(files: Any) -> None:
    ruined, bare, _, _ = files
    for loss in (None, cost):
        found = judged(bare, True, loss)
        assert "unsuitable-init" not in verdicts(found)[0]
        assert not [f for f in found.findings if f.code == "GS201"]
        assert not ruined or [c for c in found.causes if "few large directions" in c.reason]


@pytest.mark.parametrize("factor", [20.0, 1.0])
def test_a_draw_that_is_too_wide_is_a_cause_and_its_origin_is_left_open(factor: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.dim() == 2):
            weight.normal_(0, factor / weight.shape[1] ** 0.5)
    torch.save(model.state_dict(), tmp_path / "drawn.pt")
    found = gnnstab.diagnose(tmp_path / "drawn.pt", model=Net, batch=DATA, loss=cost)
    told = [c.reason for c in found.root_causes() if c.cause == "unsuitable-init"]
    assert bool(told) == (factor > 1)
    assert all("drawn so or came to be so" in reason for reason in told)
