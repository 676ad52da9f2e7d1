"""The identity path as a diff of the user's own file: what is located, what it computes, and what is left alone."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from gnnstab import fixes
from gnnstab.fixes import source_diff
from models.informarl import Actor
from models.stacks import Hetero, Stack, random_batch

HEAD = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\nfrom torch_geometric.nn import TransformerConv\n"
CONVS = "nn.ModuleList(TransformerConv(8, 8, heads=2, concat=False) for _ in range(3))"


def net(init: str, forward: str, extra: str = "") -> str:
    """Source of a class ``Net`` with these lines in its constructor and its forward."""
    first, second = ("".join(f"        {line}\n" for line in text.splitlines()) for text in (init, forward))
    return (
        f"{HEAD}{extra}class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n{first}\n"
        f"    def forward(self, x, edge_index):\n{second}        return x\n"
    )


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes source to a file, imports it, and makes its ``Net``."""
    made = []

    def load(source):
        name = f"net_{len(made)}"
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        made.append(name)
        torch.manual_seed(0)
        return module.Net()

    return load


def changed(monkeypatch, model, name, **options):
    """The whole changed file instead of the diff."""
    kept = []
    write = source_diff.edited
    monkeypatch.setattr(source_diff, "edited", lambda source, edits: kept.append(write(source, edits)) or kept[-1])
    return kept[0] if fixes.diff(model, name, **options) else None


LOOP = net(f"self.convs = {CONVS}", "for conv in self.convs:\n    x = conv(x, edge_index).tanh()")
COUNTED = net(f"self.convs = {CONVS}", "for i, conv in enumerate(self.convs):\n    x = F.relu(conv(x, edge_index))")
INDEXED = net(f"self.convs = {CONVS}", "for i in range(3):\n    x = torch.tanh(self.convs[i](x, edge_index))")
LINES = net(
    f"self.convs = {CONVS}", "for conv in self.convs:\n    x = conv(x, edge_index)\n    x = F.relu(x)\n    x = x.tanh()"
)
ONE = "TransformerConv(8, 8, heads=2, concat=False)"
APPENDED = net(
    f"self.convs = nn.ModuleList()\nfor _ in range(3):\n    self.convs.append({ONE})\nself.size = 8",
    "for conv in self.convs:\n    x = conv(x, edge_index).tanh()",
)
EXTENDED = net(
    f"self.convs = nn.ModuleList([{ONE}])\nself.convs.extend({ONE} for _ in range(2))",
    "for conv in self.convs:\n    x = conv(x, edge_index).tanh()",
)
SINGLE = net(
    "self.one = TransformerConv(8, 8)\nself.two = TransformerConv(8, 8)",
    "x = self.one(x, edge_index).relu()\nx = self.two(x, edge_index)",
)


@pytest.mark.parametrize("source", [LOOP, LINES, COUNTED, INDEXED, APPENDED, EXTENDED, SINGLE])
@pytest.mark.parametrize(("name", "norms"), [("residual", False), ("pre-norm-residual", True)])
def test_the_changed_file_computes_what_the_fix_means(load, monkeypatch, source, name, norms):
    model, batch = load(source), random_batch(12, 4, 8)
    new = load(changed(monkeypatch, model, name, weight=1.0))
    assert not norms or any(isinstance(m, nn.LayerNorm) for m in new.modules())
    new.load_state_dict(model.state_dict(), strict=False)
    layers = [m for m in model.modules() if type(m).__name__ == "TransformerConv"]
    acts = {
        LOOP: [torch.tanh] * 3,
        COUNTED: [torch.relu] * 3,
        INDEXED: [torch.tanh] * 3,
        APPENDED: [torch.tanh] * 3,
        EXTENDED: [torch.tanh] * 3,
        LINES: [lambda x: x.relu().tanh()] * 3,
        SINGLE: [torch.relu, lambda x: x],
    }
    x = batch["x"]
    for layer, act in zip(layers, acts[source], strict=True):
        inner = nn.functional.layer_norm(x, (8,)) if norms else x
        x = x + act(layer(inner, batch["edge_index"]))
    assert torch.allclose(new(**batch), x, atol=1e-6)


def test_the_diff_shows_the_lines_of_forward_and_of_the_constructor(load):
    text = fixes.diff(load(LOOP), "pre-norm-residual")
    assert "+        self.convs_norms = nn.ModuleList([nn.LayerNorm(8) for _ in self.convs])\n" in text
    assert "-        for conv in self.convs:\n" in text
    assert "+        for conv, conv_norm in zip(self.convs, self.convs_norms):\n" in text
    assert "+            x = x + conv(conv_norm(x), edge_index).tanh()\n" in text
    assert "+            x = 0.1 * x + conv(x, edge_index).tanh()\n" in fixes.diff(load(LOOP), "residual")


UNCLEAR = {
    "more than an activation": "for conv in self.convs:\n    x = conv(x, edge_index)\n    x = x + x.relu()",
    "another name": "for conv in self.convs:\n    h = conv(x, edge_index)\n    x = h.relu()",
    "an identity is there already": "for conv in self.convs:\n    x = x + conv(x, edge_index).relu()",
    "in the head of a condition": "for conv in self.convs:\n    if conv(x, edge_index).sum() > 0:\n        x = conv(x, edge_index)",
    "a slice of the list": "for conv in self.convs[:2]:\n    x = conv(x, edge_index)",
    "features by keyword": "for conv in self.convs:\n    x = conv(x=x, edge_index=edge_index)",
    "a sum of two": "x = self.convs[0](x, edge_index) + self.convs[1](x, edge_index)",
}


@pytest.mark.parametrize("forward", UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_not_certain_is_left_alone(load, forward):
    model = load(net(f"self.convs = {CONVS}", forward))
    assert fixes.diff(model, "residual", weight=1.0) is None
    assert fixes.diff(model, "pre-norm-residual") is None


def test_every_layer_or_none(load):
    half = "self.convs = " + CONVS + "\nself.more = nn.ModuleDict({'a': TransformerConv(8, 8)})"
    assert fixes.diff(load(net(half, "for conv in self.convs:\n    x = conv(x, edge_index)")), "residual") is None
    wide = "self.one = TransformerConv(8, 8, heads=2)\nself.two = TransformerConv(16, 8)"
    assert fixes.diff(load(net(wide, "x = self.one(x, edge_index)\nx = self.two(x, edge_index)")), "residual") is None
    for model in (Actor(), Hetero(), Stack(3, 8), nn.Sequential(nn.Linear(2, 2))):
        assert fixes.diff(model, "pre-norm-residual") is None
    kinds = "self.convs = nn.ModuleList(HGTConv(8, 8, (['a'], [('a', 'to', 'a')])) for _ in range(2))"
    hetero = net(
        kinds, "for conv in self.convs:\n    x = conv(x, edge_index)", "from torch_geometric.nn import HGTConv\n"
    )
    assert fixes.diff(load(hetero), "pre-norm-residual") is None
