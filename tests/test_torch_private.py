"""Private names of torch and PyG stand in one module, with all their uses, and the installed releases have them."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.nn import TransformerConv

from gnnstab import torch_private

ROOT = Path(__file__).resolve().parent.parent
PRIVATE = Path(torch_private.__file__)
FILES = [p for folder in ("gnnstab", "cli") for p in sorted((ROOT / folder).rglob("*.py")) if p != PRIVATE]
STANDARD = {"_asdict", "_current_frames", "_exit", "_fields", "_getframe", "_replace", "_repr_html_"}
"""Of Python's own, and of notebooks."""


def hidden(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def chain(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""


def torch_names(tree: ast.AST) -> set[str]:
    """Private names that are reached from torch's own modules."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("torch", "torch_geometric"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in ("torch", "torch_geometric")}
        elif chain(node).removeprefix("self._").startswith("torch."):
            found.add(chain(node).removeprefix("self._"))
    return {name for name in found if any(map(hidden, name.split(".")))}


def defined(tree: ast.AST) -> set[str]:
    """Private names that a file gives to its own classes and objects."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                names = [part] if isinstance(part, ast.FunctionDef) else getattr(part, "targets", [])
                names += [part.target] if isinstance(part, ast.AnnAssign) else []
                found |= {getattr(name, "name", getattr(name, "id", "")) for name in names}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and chain(node.value) == "self":
            found.add(node.attr)
    return found


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


@functools.cache
def names_defined() -> dict[Path, set[str]]:
    return {path: defined(tree) for path, tree in trees().items()}


def attributes(path: Path) -> set[str]:
    """Private attributes that a file reads from objects of others, also by `getattr`."""
    found, own = set(), names_defined()[path]
    inherited = set().union(*(names for other, names in names_defined().items() if other != path))
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.Attribute) and hidden(node.attr) and not chain(node).startswith("torch."):
            base = ast.unparse(node.value)
            mine = inherited if base == "super()" else own | inherited if base in ("self", "cls") else own
            found |= {node.attr} - mine
        elif isinstance(node, ast.Call) and chain(node.func) in ("getattr", "hasattr", "setattr"):
            given = node.args[1]
            if isinstance(given, ast.Constant) and hidden(str(given.value)):
                found.add(str(given.value))
    return found - STANDARD


def test_the_search_can_find() -> None:
    source = "import torch\nfrom torch.utils._x import y\ntorch._C.f()\nself._torch._g(module._hidden)\n"
    assert torch_names(ast.parse(source)) >= {"torch.utils._x.y", "torch._C.f", "torch._g"}
    assert torch_names(ast.parse(PRIVATE.read_text(encoding="utf-8"))) > {"torch._C._set_grad_enabled"}


def test_no_other_file_reaches_into_torch() -> None:
    for path, tree in trees().items():
        assert not torch_names(tree), f"{path}: bind the name in gnnstab/torch_private.py"


def test_every_private_attribute_is_listed_and_every_listed_one_is_used() -> None:
    used = {name: path for path in FILES for name in attributes(path)}
    assert used.keys() == torch_private.ATTRIBUTES.keys(), {
        name: str(used.get(name, "not used")) for name in used.keys() ^ torch_private.ATTRIBUTES.keys()
    }


def test_no_bound_name_makes_a_stack_of_function_transforms() -> None:
    """All of ``torch._C._functorch`` makes one in its thread, which every node of every backward copies from then on."""
    assert "_functorch" not in {
        node.attr for node in ast.walk(ast.parse(PRIVATE.read_text("utf-8"))) if isinstance(node, ast.Attribute)
    }


def test_every_bound_name_is_used() -> None:
    bound = {n for n in vars(torch_private) if n.isidentifier() and not n.startswith("_")} - {
        "Callable",
        "Iterator",
        "Mapping",
        "MappingProxyType",
        "Any",
        "NamedTuple",
        "TypeVar",
        "TorchDispatchMode",  # The base of the one that goes through no function of the compiler.
    }
    bound -= {"ATTRIBUTES", "annotations", "torch"}
    names = {
        name
        for tree in trees().values()
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom) and node.module == "gnnstab.torch_private"
            else [node.attr]
            if isinstance(node, ast.Attribute)
            else []
        )
    }
    assert bound <= names, sorted(bound - names)


def owners() -> list[object]:
    """One object of each kind that an attribute is listed for."""
    x = torch.ones(3, requires_grad=True)
    outputs = [x.relu(), x.clamp(0, 1), x.clamp(min=0), torch.nn.functional.hardtanh(x), torch.minimum(x, x)]
    outputs += [
        torch.nn.functional.layer_norm(x, (3,)),
        x.softmax(0),
        torch.mm(x[None], x[:, None]),
        x[torch.arange(2)],
    ]
    outputs += [torch.nn.functional.mse_loss(x, x.detach()), x.std(), x.view(3, 1)]
    nodes: list[object] = [output.grad_fn for output in outputs]
    sparse = torch.eye(2).to_sparse()
    return [
        *nodes,
        sparse,
        torch.nn.Linear(1, 1),
        torch.nn.MultiheadAttention(1, 1),
        TransformerConv(1, 1),
        Batch.from_data_list([Data(x=torch.ones(1, 1))]),
        Data(),
        torch.amp.GradScaler("cpu"),
        HeteroData(),
        torch.ops.aten.add,
        torch.ops.aten.add.Tensor,
        torch.autograd.forward_ad,
    ]


@pytest.mark.parametrize("name", torch_private.ATTRIBUTES)
def test_the_installed_releases_have_it(name: str) -> None:
    assert any(hasattr(owner, name) for owner in owners()), torch_private.ATTRIBUTES[name]
