"""Attention that is written without a softmax function, or whose softmax is altered before it weights values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

N, WIDTH = 12, 8


def edges() -> Tensor:
    """(2, 60)."""
    torch.manual_seed(3)
    return torch.randint(0, N, (2, 60))


def adjacency() -> Tensor:
    """(N, N) of 0 and 1, loops included."""
    torch.manual_seed(4)
    return (torch.rand(N, N) < 0.5).float().fill_diagonal_(1)


class Parts(nn.Module):
    """Maps of queries, keys and values, and the scores of edges."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def scores(self, x: Tensor, given: Tensor) -> Tensor:
        """(E,) or (N, N)."""
        if given.shape == (N, N):
            return self.q(x) @ self.k(x).T
        return (self.q(x)[given[1]] * self.k(x)[given[0]]).sum(-1)


class SumsApart(Parts):
    """Numerator and denominator summed apart."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        w = torch.exp(self.scores(x, e).unsqueeze(-1))
        above = torch.zeros(N, WIDTH).index_add(0, e[1], w * self.v(x)[e[0]])
        return above / (torch.zeros(N, 1).index_add(0, e[1], w) + 1e-16)


class Method(Parts):
    """A method of any name that takes the largest score away first."""

    def weigh(self, score: Tensor, to: Tensor) -> Tensor:
        w = (score - score.max()).exp()
        return w / (torch.zeros(N).scatter_add_(0, to, w)[to] + 1e-16)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        a = self.weigh(self.scores(x, e), e[1])
        return torch.zeros(N, WIDTH).index_add_(0, e[1], a[:, None] * self.v(x)[e[0]])


class Inverse(Parts):
    """Multiplied with the inverse of a sum that `index_put` makes."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        w = self.scores(x, e).clamp(-5, 5).exp()
        below = torch.zeros(N).index_put((e[1],), w, accumulate=True)
        wide = e[1][:, None].expand(-1, WIDTH)
        return torch.zeros(N, WIDTH).scatter_reduce(0, wide, w[:, None] * self.v(x)[e[0]], "sum") * (1 / below)[:, None]


class Special(torch.autograd.Function):
    """A product with a sparse matrix, differentiable in its entries."""

    @staticmethod
    def forward(ctx: Any, at: Tensor, values: Tensor, right: Tensor) -> Tensor:
        a = torch.sparse_coo_tensor(at, values, (N, N), check_invariants=False)
        ctx.save_for_backward(a, right)
        return torch.matmul(a, right)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        a, right = ctx.saved_tensors
        at = a._indices()
        return None, (grad[at[0]] * right[at[1]]).sum(-1), a.t() @ grad


class SparseProduct(Parts):
    """A product of a sparse matrix of exponentials over its product with ones."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        w = torch.exp(self.scores(x, e))
        at = e.flip(0)
        below: Tensor = Special.apply(at, w, torch.ones(N, 1))  # type: ignore[no-untyped-call]
        above: Tensor = Special.apply(at, w, self.v(x))  # type: ignore[no-untyped-call]
        return above.div(below + 1e-16)


class SparseSoftmax(Parts):
    """Torch's softmax of a sparse matrix."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        at = e.flip(0)
        a = torch.sparse_coo_tensor(at, self.scores(x, e), (N, N), check_invariants=False).coalesce()
        return torch.sparse.mm(torch.sparse.softmax(a, 1), self.v(x))


class OwnConv(MessagePassing):
    """Exponentials in a `MessagePassing`."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    scores = Parts.scores

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        w = torch.exp(self.scores(x, e))
        below = torch.zeros(N).scatter_add(0, e[1], w)
        return self.propagate(e, v=self.v(x), a=(w / below[e[1]])[:, None])

    def message(self, v_j: Tensor, a: Tensor) -> Tensor:
        return a * v_j


class Masked(Parts):
    """A mask of the same shape behind the softmax."""

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return (torch.softmax(self.scores(x, adj), -1) * adj) @ self.v(x)


class Mixed(Parts):
    """Mixed with the adjacency."""

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return (0.5 * torch.softmax(self.scores(x, adj), -1) + 0.5 * adj / adj.sum(1, keepdim=True)) @ self.v(x)


class Renormalised(Parts):
    """Masked, and over its sum once more."""

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        a = torch.softmax(self.scores(x, adj), -1) * adj
        return (a / a.sum(-1, keepdim=True)) @ self.v(x)


class DenseExponentials(Parts):
    """Exponentials over their sum along the keys."""

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        w = torch.exp(self.scores(x, adj))
        return (w / w.sum(-1, keepdim=True)) @ self.v(x)


class DenseSumsApart(Parts):
    """The same, divided after the product."""

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        w = torch.exp(self.scores(x, adj))
        return (w @ self.v(x)) / w.sum(-1, keepdim=True)


OVER_EDGES: tuple[Any, ...] = (SumsApart, Method, Inverse, SparseProduct, SparseSoftmax, OwnConv)
DENSE: tuple[Any, ...] = (Masked, Mixed, Renormalised, DenseExponentials, DenseSumsApart)


def edge_weights(score: Tensor, e: Tensor) -> Tensor:
    """(E,) what each of `OVER_EDGES` must have attended with."""
    return softmax(score, e[1], num_nodes=N)


class Kernel(Parts):
    """Exponentials that weight neighbours and are never divided by their sum."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        w = torch.exp(-(x[e[0]] - x[e[1]]).square().sum(-1) / 2)
        return torch.zeros(N, WIDTH).index_add(0, e[1], w[:, None] * self.v(x)[e[0]])


class Variational(Parts):
    """A spread from the logarithm of a variance."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        spread = torch.exp(self.k(x) / 2)
        return self.q(x) + spread * torch.ones_like(x) / WIDTH


class Contrast(Parts):
    """Similarities over their sum that weight nothing."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        w = torch.exp(self.q(x) @ self.k(x).T)
        return self.v(x) + torch.log(w / w.sum(1, keepdim=True)).mean()


NO_ATTENTION: tuple[Any, ...] = (Kernel, Variational, Contrast)


class Einsums(Parts):
    """Linear attention, summed over all nodes."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        q, k, v = self.q(x).relu(), self.k(x).relu(), self.v(x)
        above = torch.einsum("nm,md->nd", q, torch.einsum("nm,nd->md", k, v)) + N * v
        below = torch.einsum("nm,m->n", q, torch.einsum("nm,n->m", k, torch.ones(N))).unsqueeze(-1)
        return above / (below + N)


class Performer(Parts):
    """The inverse of the denominator in a product of three."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        q, k, v = self.q(x).exp(), self.k(x).exp(), self.v(x)
        below = 1.0 / torch.einsum("nd,d->n", q, k.sum(0))
        return torch.einsum("de,nd,n->ne", torch.einsum("nd,ne->de", k, v), q, below)


class Matrices(Parts):
    """Linear attention by matrix products."""

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        q, k = self.q(x).sigmoid(), self.k(x).sigmoid()
        return q @ (k.T @ self.v(x)) / (q @ k.sum(0, keepdim=True).T)


LINEAR: tuple[Any, ...] = (Einsums, Performer, Matrices)
