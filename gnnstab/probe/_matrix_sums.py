"""Which products with a matrix add up rows: those with a sparse matrix, and those with a dense one of counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OF_TORCH_SPARSE = "torch_sparse::spmm_sum"
MATRIX_PRODUCTS = frozenset(
    {
        *(torch.mm, torch.matmul, torch.bmm, torch.spmm, torch.sparse.mm),
        *(Tensor.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, torch.einsum),
    }
)


def is_product(func: Any) -> bool:
    """True for what multiplies by a matrix from the left; torch_sparse's own operation is known by its name."""
    return func in MATRIX_PRODUCTS or getattr(func, "_qualified_op_name", "") == _OF_TORCH_SPARSE


def terms(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """(…, rows) how many rows each row of a product adds up; None of a dense matrix of other numbers, and of weights."""
    if func not in MATRIX_PRODUCTS:
        return torch.diff(args[1])
    if func is torch.einsum:
        args = _as_product(*args)
        if not args:
            return None
    matrix, values, *more = (*args, *kwargs.values())
    # What is multiplied with weights of the model are features of one node: their sum is a linear layer.
    if not isinstance(matrix, Tensor) or isinstance(values, nn.Parameter) or any(m not in ("sum", None) for m in more):
        return None
    matrix = matrix.detach()
    if matrix.layout == torch.sparse_csr:
        return torch.diff(matrix.crow_indices())
    if matrix.layout != torch.strided:
        return torch.bincount(matrix.to_sparse(layout=torch.sparse_coo).coalesce().indices()[0], minlength=len(matrix))
    if matrix.dim() < 2 or not bool(((matrix >= 0) & (matrix == matrix.round())).all()):
        return None
    return matrix.sum(-1)


def _as_product(equation: Any, *operands: Any) -> tuple[Any, ...]:
    """(matrix (…, rows, terms), values (…, terms, features)) of an einsum that is their product; empty of any other."""
    operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    parts = re.split(",|->", equation.replace(" ", "")) if isinstance(equation, str) and "->" in equation else []
    if len(parts) != 3 or len(operands) != 2 or min(map(len, parts)) < 2 or "." in equation:
        return ()
    matrix, values, out = parts
    order = f"{out[:-1]}{values[-2]}"
    if values[:-2] != out[:-2] or values[-1] != out[-1] or sorted(order) != sorted(matrix) or values[-2] in out:
        return ()
    return operands[0].permute([matrix.index(letter) for letter in order]), operands[1]
