"""The loop of docs/agents.md: from a broken script and the Markdown report alone, the change restores training."""

from __future__ import annotations

import importlib
import math
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run

from gnnstab import demo, demo_files
from models.stacks import random_batch

STEPS = 60

DEEP = """
import torch
from torch import nn
from torch_geometric.nn import TransformerConv


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([TransformerConv(16, 16) for _ in range(16)])

    def forward(self, x, edge_index):
        for conv in self.convs:
            x = conv(x, edge_index).relu()
        return x


def loss(output, y):
    return (output - y).square().mean()
"""

SHALLOW = DEEP.replace("range(16)", "range(2)")


def batch_of(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    batch = random_batch()
    return batch["x"] * scale, batch["edge_index"]


class Script:
    """A user's file ``network.py``, trained as its author would."""

    def __init__(
        self,
        source: str,
        inputs: tuple[Any, ...],
        y: Any,
        *,
        half: bool = False,
        gain: float = 1.0,
        rate: float = 0.005,
    ) -> None:
        Path("network.py").write_text(source, encoding="utf-8")
        torch.save((*inputs,), "batch.pt")
        self.inputs, self.y, self.half, self.gain, self.rate = inputs, y, half, gain, rate

    def load(self) -> dict[str, Any]:
        sys.modules.pop("network", None)
        importlib.invalidate_caches()
        return vars(importlib.import_module("network"))

    def train(self) -> float:
        """The loss after a short training from fresh weights; NaN when it died."""
        names = self.load()
        torch.manual_seed(0)
        model = names["Net"]()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter *= self.gain if "lin_query" in name or "lin_key" in name else 1.0
        torch.save(model.state_dict(), "weights.pt")
        optimizer = torch.optim.Adam(model.parameters(), lr=self.rate)
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=self.half):
                output = model(*self.inputs)
            value = names["loss"](output.float(), self.y)
            value.backward()
            optimizer.step()
        return value.item()


def swarm() -> Script:
    data = demo.swarm_graphs()
    source = demo_files.network() + "Net, loss = actor, lambda output, y: (output.float() - y).square().mean()\n"
    return Script(source, (data.x, data.edge_index, data.edge_attr), data.y, gain=2.0, rate=0.02)


def deep() -> Script:
    x, edge_index = batch_of()
    return Script(DEEP, (x, edge_index), x.roll(1, 1).abs())


def overflow() -> Script:
    x, edge_index = batch_of()
    return Script(SHALLOW, (x, edge_index), x.roll(1, 1).abs(), half=True, gain=300.0)


def features() -> Script:
    x, edge_index = batch_of(200.0)
    return Script(SHALLOW, (x, edge_index), x.roll(1, 1).abs() / 200)


def first_change(markdown: str) -> tuple[str, str]:
    """Language and code of the first fenced block: what a reader is told to change first."""
    found = re.search(r"^ *```(\w+)\n(.*?)^ *```", markdown, re.DOTALL | re.MULTILINE)
    assert found, markdown
    return found[1], textwrap.dedent(found[2])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("patch") is None, reason="needs patch")
@pytest.mark.parametrize(
    ("make", "cause"),
    [(swarm, "sum-aggregation"), (deep, "no-residual"), (overflow, "precision"), (features, "feature-scale")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_first_change_of_the_report_restores_training(
    make: Any,
    cause: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    own_network: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    script = make()
    broken = script.train()

    def report() -> tuple[int, str]:
        sys.modules.pop("network", None)
        precision = ("--precision", "fp16") if script.half else ()
        code = run(["diagnose", "weights.pt", "--model", "network:Net", "--batch", "batch.pt", *precision,
                    "--format", "markdown"])  # fmt: skip
        return code, capsys.readouterr().out

    code, said = report()
    assert code == 1
    assert f"**{cause}** (root cause" in said
    language, change = first_change(said)
    if language == "diff":
        subprocess.run(["patch", "-p1"], input=change, text=True, check=True, capture_output=True)
    else:
        names = {"x": script.inputs[0], "train_x": script.inputs[0]}
        exec(change, names)
        script.inputs = (names["x"], *script.inputs[1:])
        torch.save(script.inputs, "batch.pt")
    mended = script.train()
    assert math.isfinite(mended)
    assert not mended > 0.8 * broken
    _, after = report()
    assert f"**{cause}** (root cause" not in after
