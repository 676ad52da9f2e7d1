"""A file alone does not warn of what training and design may well have meant, and still warns of what neither explains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv, HGTConv, TransformerConv

import gnnstab

WIDTH = 8
X = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0))
RING = torch.stack([torch.arange(24), torch.arange(24).roll(1)])
BOTH_WAYS = torch.cat([RING, RING.flip(0), torch.stack([torch.arange(24), torch.arange(24).roll(5)])], 1)


class Block(nn.Module):
    """Updates two things of every node by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = TransformerConv(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, one: Tensor, two: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """The first from both, the second from both."""
        one = one + self.conv(one + two, edges)
        return one, two + self.other(one).tanh()


class Blocks(nn.Module):
    """Answers with one of the two; ``detached`` is the block whose update of the other is lost."""

    def __init__(self, detached: int | None = None) -> None:
        super().__init__()
        self.blocks, self.head, self.detached = nn.ModuleList(Block() for _ in range(3)), nn.Linear(WIDTH, 1), detached

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """The last update of the other is not read."""
        one, two = x, x
        for position, block in enumerate(self.blocks):
            one, two = block(one, two, edges)
            two = two.detach() if position == self.detached else two
        return self.head(one)  # type: ignore[no-any-return]


class Single(nn.Module):
    """A layer of each kind; queries and keys do nothing where every target has one neighbour."""

    def __init__(self, lost_key: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.head = TransformerConv(WIDTH, WIDTH), GATv2Conv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        if lost_key:
            self.first.lin_key.register_forward_hook(lambda module, args, out: out.detach())
        self.second.add_self_loops = False

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """The second layer hears one neighbour."""
        return self.head(self.second(self.first(x, edges), RING))  # type: ignore[no-any-return]


def saved(model: nn.Module, folder: Path) -> Path:
    """The file of a short training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(10):
        optimizer.zero_grad()
        (model(X, BOTH_WAYS) - X[:, :1]).square().mean().backward()
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "file.pt")
    return folder / "file.pt"


@pytest.mark.parametrize(
    ("make", "severity", "parameter"),
    [
        (Blocks, "info", "blocks.2.other"),
        (lambda: Blocks(1), "warning", "blocks.1.other"),
        (Single, "info", "second.att"),
        (lambda: Single(lost_key=True), "warning", "first.lin_key"),
    ],
    ids=["last update unread", "update lost on the way", "one neighbour", "key lost"],
)
def test_parameters_that_the_design_leaves_out_are_information(
    make: Callable[[], nn.Module], severity: str, parameter: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    (found,) = [f for f in gnnstab.diagnose(saved(make(), tmp_path)).findings if f.code == "GS604"]
    assert found.severity == severity and parameter in found.message
    assert ("batch=" in found.message) is (severity == "info")


@pytest.mark.parametrize("trained", [True, False])
def test_a_prior_that_training_has_raised_is_information(trained: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    kinds, relation = ["user", "item"], ("user", "buys", "item")
    conv = HGTConv(WIDTH, WIDTH, (kinds, [relation, ("item", "bought", "user")]), heads=2)
    with torch.no_grad():
        for prior in conv.p_rel.values():
            prior.fill_(60)
        if trained:
            for weight in conv.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
    torch.save({"conv." + name: tensor for name, tensor in conv.state_dict().items()}, tmp_path / "file.pt")
    found = [f for f in gnnstab.diagnose(tmp_path / "file.pt").findings if f.code == "GS301"]
    assert {f.severity for f in found} == {"info" if trained else "warning"}
