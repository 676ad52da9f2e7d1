"""What a report of a live model shows as the change: a diff that `patch` takes, and that makes the change."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gnnstab
from gnnstab.fixes.base import NOTHING_MEASURED
from gnnstab.fixes.own_lines import in_own_lines
from gnnstab.fixes.qk_clip import QKClip
from gnnstab.fixes.text_edits import changed_lines
from gnnstab.records import Cause, Coverage, Diagnosis, FixAdvice, LayerFacts, Target

SOURCE = textwrap.dedent(
    """\
    import torch
    from torch_geometric.nn import TransformerConv


    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = TransformerConv(8, 8)
            self.conv2 = TransformerConv(8, 8)

        def forward(self, x, edge_index):
            x = self.conv1(x, edge_index).relu()
            return self.conv2(x, edge_index).relu()
    """
)


def loaded(path: Path) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("net_of_a_user", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["net_of_a_user"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module.Net()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "net.py"
    path.write_text(SOURCE, encoding="utf-8")
    yield path
    sys.modules.pop("net_of_a_user", None)


def advised(status: str, fix: str, note: str = "") -> Diagnosis:
    causes = (Cause("no-dropout", status, "", fixes=(FixAdvice(fix, "code", note=note),)),)
    return Diagnosis(Target("model", "Net"), Coverage(2, 2), causes, (), ())


def change(diagnosis: Diagnosis) -> str:
    return diagnosis.causes[0].fixes[0].change


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
def test_the_diff_applies_and_makes_the_change(file: Path) -> None:
    model = loaded(file)
    shown = change(in_own_lines(advised("root-cause", "dropout", "gnnstab verify --fix dropout --option p=0.3"), model))
    assert shown.startswith("--- a/net.py\n+++ b/net.py\n")
    subprocess.run(["patch", "-p1"], input=shown + "\n", text=True, cwd=file.parent, check=True, capture_output=True)
    assert [conv.dropout for conv in (loaded(file).conv1, loaded(file).conv2)] == [0.3, 0.3]


def test_what_has_no_certain_place_or_no_symptom_stays_as_it_was(file: Path) -> None:
    model = loaded(file)
    assert change(in_own_lines(advised("root-cause", "qk-clip"), model)) == "code"
    assert change(in_own_lines(advised("present", "dropout"), model)) == "code"
    file.unlink()
    assert change(in_own_lines(advised("root-cause", "dropout"), model)) == "code"


def test_diagnose_of_a_live_model_shows_the_users_own_lines(file: Path) -> None:
    model = loaded(file)
    with torch.no_grad():
        for conv in (model.conv1, model.conv2):
            conv.lin_query.weight *= 30
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(30, 8, generator=generator),
        "edge_index": torch.randint(0, 30, (2, 200), generator=generator),
    }
    diagnosis = gnnstab.diagnose(model, batch=batch)
    (fix,) = [fix for cause in diagnosis.root_causes() for fix in cause.fixes if fix.fix == "qk-norm"]
    assert "-        self.conv1 = TransformerConv(8, 8)" in fix.change.splitlines()
    assert "+        self.conv1 = StableTransformerConv(8, 8, qk_norm=True)" in fix.change.splitlines()


def test_factors_that_change_nothing_are_not_offered() -> None:
    scores = {"conv": [12.9, 1.0]}
    degree = 10
    cap = QKClip().factors(scores={"conv": [1e6, 1.0]}, degree=degree)["conv"][0] * 1e6
    fix = QKClip()
    assert not fix.helps(NOTHING_MEASURED, scores={"conv": [cap * 1.0005, 1.0]}, degree=degree)
    assert fix.helps(NOTHING_MEASURED, scores={"conv": [cap * 1.01, 1.0]}, degree=degree)
    assert fix.helps(NOTHING_MEASURED, scores=scores | {"conv": [cap * 2]}, degree=degree)
    assert fix.helps(NOTHING_MEASURED), "without a measurement nothing speaks against it"


def test_repeated_layers_are_one_loop_and_the_loop_makes_the_edit(file: Path) -> None:
    model = loaded(file)
    measured = {"scores": {"conv1": [400.0], "conv2": [90.0]}, "degree": 10}
    code = QKClip().change((), **measured)
    assert len(code.splitlines()) == 10
    expected = QKClip().apply(model, **measured)
    exec(code, {"model": model})
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=0)


SUM = textwrap.dedent(
    """\
    from torch import nn
    from torch_geometric.nn import MessagePassing, TransformerConv


    class Sum(MessagePassing):
        def __init__(self):
            super().__init__(aggr="add")

        def forward(self, x, edge_index):
            return self.propagate(edge_index, x=x)

        def message(self, x_j):
            return x_j


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = Sum()
            self.conv = TransformerConv(8, 8)

        def forward(self, x, edge_index):
            return self.conv(self.embed(x, edge_index), edge_index)
    """
)


def sum_change(file: Path, fix: str) -> str:
    model = loaded(file)
    return change(
        in_own_lines(
            replace(
                advised("root-cause", fix),
                layers=(LayerFacts.of(name="embed", kind="Sum", position=0, attention=False, in_channels=(8, 8),
                                      out_channels=8, aggregation="add"),),
            ),
            model,
        )
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
@pytest.mark.parametrize("fix", ["mean-aggregation-root", "norm-after-sum"])
def test_the_cure_of_a_sum_is_a_diff_that_makes_the_change(file: Path, fix: str) -> None:
    file.write_text(SUM, encoding="utf-8")
    shown = sum_change(file, fix)
    norm = fix == "norm-after-sum"
    assert [line for line in changed_lines(shown) if "propagate" in line][1].endswith("+ self.lin_root(x)")
    subprocess.run(["patch", "-p1"], input=shown + "\n", text=True, cwd=file.parent, check=True, capture_output=True)
    embed = loaded(file).embed
    assert (embed.aggr, hasattr(embed, "sum_norm")) == ("add" if norm else "mean", norm)
    assert embed(torch.ones(3, 8), torch.tensor([[0, 1], [2, 2]])).shape == (3, 8)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return self.propagate(edge_index, x=x)", "return self.propagate(edge_index, x=x).relu()"),
        ("return self.propagate", "x = x * 2\n        return self.propagate"),
        ('aggr="add"', '**{"aggr": "add"}'),
    ],
)
def test_a_sum_that_more_is_done_to_stays_code(file: Path, old: str, new: str) -> None:
    file.write_text(SUM.replace(old, new), encoding="utf-8")
    assert sum_change(file, "mean-aggregation-root") == "code"


def test_lines_that_go_have_the_number_that_they_have_in_the_file() -> None:
    diff = (
        "--- a/net.py\n+++ b/net.py\n@@ -13,7 +13,8 @@\n-    old\n+    new\n     kept\n+    more\n     kept\n     kept\n"
        "-    last\n+    end\n@@ -40 +41 @@\n-    far\n+    away\n"
    )
    assert changed_lines(diff) == [
        "net.py",
        "  13 - old",
        "  13 + new",
        "  15 + more",
        "  17 - last",
        "  18 + end",
        "  40 - far",
        "  41 + away",
    ]
