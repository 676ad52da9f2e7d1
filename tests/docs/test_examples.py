"""Every code block of the documentation and the README runs.

A ``python`` block runs in the namespace of its page, in a folder that holds what a reader would have: a checkpoint, a batch,
a recorded run. In a ``console`` block every line after ``$ gnnstab`` is run; ``# exits N`` behind it states the exit code.
Blocks in other languages are not code to run.
"""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run

import gnnstab
from gnnstab.errors import GnnstabWarning, MissingExtra
from models.informarl import DATA

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<language>python|console)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
OTHERS = ("sinks.md",)
"""Pages that call packages whose own warnings are none of ours."""

EXITS = re.compile(r"\s+# exits (\d)\s*$")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    if "_build" in page.parts or "decisions" in page.parts:
        return
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["code"]


WITH_CODE = [page for page in PAGES if next(blocks(page), None)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The reader's folder and the names that a training script would hold."""
    for name, source in {"actor.pt": "agents7_default", "healthy.pt": "healthy_3agents"}.items():
        (tmp_path / name).write_bytes((DATA / source / "actor.pt").read_bytes())
    (tmp_path / "crash.pt").write_bytes((DATA / "agents7_lr7e-2_amp16_nan_crash" / "actor.pt").read_bytes())
    (tmp_path / "batch.pt").write_bytes((DATA / "sample_batch_7agents.pt").read_bytes())
    (tmp_path / "network.py").write_text("from models.informarl import actor, policy_loss\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Another test may have imported a module of this name from its own folder.
    monkeypatch.delitem(sys.modules, "network", raising=False)
    torch.manual_seed(0)
    names = training_script()
    record(names)
    return names


def training_script() -> dict[str, Any]:
    from torch import nn
    from torch_geometric.data import Data
    from torch_geometric.nn import TransformerConv

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(8, 16)
            self.conv1 = TransformerConv(16, 16)
            self.conv2 = TransformerConv(16, 16)
            self.head = nn.Linear(16, 1)

        def forward(self, batch: Data) -> torch.Tensor:
            x = self.conv1(self.embed(batch.x), batch.edge_index).relu()
            return self.head(self.conv2(x, batch.edge_index).relu())

    model = Net()
    data = [
        Data(x=torch.randn(20, 8), edge_index=torch.randint(0, 20, (2, 80)), y=torch.randn(20, 1)) for _ in range(3)
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return {
        "model": model,
        "loader": data,
        "batch": data[0],
        "optimizer": optimizer,
        "criterion": nn.functional.mse_loss,
        "loss": lambda output, batch: nn.functional.mse_loss(output, batch.y),
    }


def record(script: dict[str, Any]) -> None:
    """A recorded run for the pages that begin with one; the pages that record their own find the old one renamed."""
    with gnnstab.Monitor(script["model"], optimizer=script["optimizer"], trace="run.gnnstab") as monitor:
        for batch in script["loader"]:
            script["optimizer"].zero_grad()
            script["criterion"](script["model"](batch), batch.y).backward()
            script["optimizer"].step()
    script["diagnosis"] = monitor.diagnose()


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_of_the_page_runs(page: Path, desk: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    missing: list[str] = []
    for language, code in blocks(page):
        if language == "python":
            try:
                with warnings.catch_warnings():
                    if page.name in OTHERS:
                        warnings.simplefilter("ignore")
                        warnings.simplefilter("error", GnnstabWarning)
                    exec(compile(code, str(page), "exec"), desk)
            except MissingExtra as error:  # the other blocks run all the same
                missing.append(str(error))
        else:
            for line in code.splitlines():
                if line.startswith("$ gnnstab "):
                    run_command(line, capsys)
    if missing:
        # The example shows an optional package; .ci/run installs them all, so that none is skipped there.
        pytest.skip("; ".join(missing))


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = EXITS.search(line)
    arguments = shlex.split(EXITS.sub("", line).removeprefix("$ gnnstab "))
    code = run(arguments)
    shown = capsys.readouterr()
    assert code == int(expected[1] if expected else 0), f"{line}\n{shown.out}\n{shown.err}"
