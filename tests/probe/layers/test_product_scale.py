"""Dense scores beside the products of queries and keys that they are made of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import gnnstab

N, WIDTH = 12, 16


class Attention(nn.Module):
    """Scores are ``factor`` · q·k/√d, written in one of three ways, one of them with a smaller bias, of unit vectors whose factor stands before or behind
    the product, or made of distances."""

    def __init__(self, how: str, factor: float) -> None:
        super().__init__()
        self.how, self.factor = how, factor
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.q(x), self.k(x)
        if self.how in ("cosines", "scaled cosines"):
            q, k = nn.functional.normalize(q, dim=-1), nn.functional.normalize(k, dim=-1)
        if self.how == "einsum":
            scores = torch.einsum("nd,md->nm", q, k) / math.sqrt(WIDTH)
        elif self.how == "scaled cosines":
            return self._weighted(x, self.factor / math.sqrt(WIDTH) * q @ k.T)
        elif self.how in ("matmul", "biased", "cosines"):
            scores = q @ k.T / math.sqrt(WIDTH)
            if self.how == "biased":
                scores = scores + 0.3 * float(scores.detach().std()) * torch.cdist(x[:, :1], x[:, :1])
        else:
            scores = -torch.cdist(q, k)
        return self._weighted(x, self.factor * scores)

    def _weighted(self, x: Tensor, scores: Tensor) -> Tensor:
        out: Tensor = torch.softmax(scores.masked_fill(torch.eye(N, dtype=torch.bool), -1e9), -1) @ self.v(x)
        return out


@pytest.mark.parametrize("how", ["matmul", "einsum", "biased"])
@pytest.mark.parametrize("factor", [1.0, 40.0])
def test_what_multiplies_the_products_is_measured(how: str, factor: float) -> None:
    torch.manual_seed(0)
    model, x = Attention(how, factor), torch.randn(N, WIDTH)
    found = gnnstab.diagnose(model, batch=(x,), loss=lambda out, _: (out - 1).square().mean())
    (scale,) = [s.value for s in found.signals if s.name == "score.product_scale"]
    with torch.no_grad():
        sizes = float(model.q(x).square().mean().sqrt() * model.k(x).square().mean().sqrt())
    assert math.isclose(scale, factor * min(1.0, sizes), rel_tol=0.15 if how == "biased" else 1e-3)
    assert [f.severity for f in found.findings if f.code == "GS301"] == (["error"] if factor > 1 else [])


@pytest.mark.parametrize("how", ["cosines", "scaled cosines"])
@pytest.mark.parametrize("factor", [1.0, 40.0, 200.0, 800.0])
def test_the_temperature_of_cosines_is_a_choice(how: str, factor: float) -> None:
    torch.manual_seed(0)
    found = gnnstab.diagnose(Attention(how, factor), batch=(torch.randn(N, WIDTH),))
    assert not [s for s in found.signals if s.name == "score.product_scale"]
    (scale,) = [s.value for s in found.signals if s.name == "score.cosine_scale"]
    assert math.isclose(scale, factor / math.sqrt(WIDTH), rel_tol=1e-3)
    assert [f.severity for f in found.findings if f.code == "GS301"] == (["info"] if factor > 40 else [])


@pytest.mark.parametrize("factor", [1.0, 40.0])
def test_scores_that_are_no_products_have_no_such_scale(factor: float) -> None:
    torch.manual_seed(0)
    found = gnnstab.diagnose(Attention("distances", factor), batch=(torch.randn(N, WIDTH),))
    assert not [s for s in found.signals if s.name == "score.product_scale"]
    # A look with an input of RMS 1 shows that they are sharp by themselves.
    unit = {s.value for s in found.signals if s.name == "attention.entropy_unit_input"}
    assert max(unit) < 0.1 if factor > 1 else min(unit) > 0.9
    sharp = [f for f in found.findings if f.code == "GS301"]
    assert [(f.severity, "(q and k), with any factor" in f.message) for f in sharp] == [("error", True)] * (factor > 1)
