"""Every code block of the documentation and the README runs.

A ``python`` block runs in the namespace of its page, in a folder that holds what a reader would have: what
`gnnstab demo --files FOLDER` writes. In a ``console`` block every line after ``$ gnnstab`` is run; ``# exits N`` behind it states the exit code,
and lines below it are what it prints at 80 columns, number for number but for their size (see `as_shown`). Blocks in other languages are not
code to run.
"""

from __future__ import annotations

import re
import shlex
import shutil
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gnnstab.cli.group import run

import gnnstab
from gnnstab import verification
from gnnstab.demo_files import FILES
from gnnstab.errors import GnnstabWarning, MissingExtra

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<language>python|console)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
OTHERS = ("sinks.md",)
"""Pages that call packages whose own warnings are none of ours."""

BRIEF = {"scale": ["--seeds", "1"]}
"""What is given to commands that name no seeds: what they do is the same as with more of them."""

EXITS = re.compile(r"\s+# exits (\d)\s*$")


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    if "_build" in page.parts or "decisions" in page.parts:
        return
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["code"]


WITH_CODE = [page for page in PAGES if next(blocks(page), None)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `gnnstab demo --files FOLDER` makes: all that the documentation tells its reader to create."""
    folder = tmp_path_factory.mktemp("written")
    assert run(["demo", "--files", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == sorted(FILES)
    return folder


@pytest.fixture
def desk(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_network: None) -> dict[str, Any]:
    """The reader's folder and the names that a training script would hold."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(verification, "prove", partial(verification.prove, seeds=3, steps=40))
    torch.manual_seed(0)
    return training_script()


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
        "diagnosis": gnnstab.diagnose("run.gnnstab"),
        "model": model,
        "loader": data,
        "batch": data[0],
        "optimizer": optimizer,
        "criterion": nn.functional.mse_loss,
        "loss": lambda output, batch: nn.functional.mse_loss(output, batch.y),
    }


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
            for line, shown in commands(code):
                capsys.readouterr()  # What the blocks before it have printed.
                said = run_command(line, capsys)
                assert not shown or as_shown(shown) == as_shown(said), f"{line}\n{said}"
    if missing:
        # The example shows an optional package; .ci/run installs them all, so that none is skipped there.
        pytest.skip("; ".join(missing))


def commands(code: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what is shown below it."""
    for command in re.split(r"^(?=\$ )", code.replace("\\\n", " "), flags=re.MULTILINE):
        line, _, shown = command.partition("\n")
        if line.startswith("$ gnnstab "):
            yield line, shown.rstrip()


def as_shown(text: str) -> str:
    """The one rule of the comparison: digits differ from processor to processor, and with their number the blanks and line ends beside them."""
    return " ".join(re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", text).split())


def test_what_start_pages_show_is_compared_and_a_wrong_line_is_seen() -> None:
    readme = [
        shown for language, code in blocks(ROOT / "README.md") if language == "console" for _, shown in commands(code)
    ]
    assert len(list(filter(None, readme))) >= 4
    assert as_shown("a  1.5e-3\nb 20 ×") == as_shown("a 0.7 b\n3 ×")
    assert as_shown("2 warnings") != as_shown("2 errors")


def test_code_of_the_readme_fits_eighty_columns() -> None:
    for _, code in blocks(ROOT / "README.md"):
        assert max(map(len, code.splitlines())) <= 80


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    expected = EXITS.search(line)
    arguments = shlex.split(EXITS.sub("", line).removeprefix("$ gnnstab "))
    code = run([*arguments, *([] if "--seeds" in arguments else BRIEF.get(arguments[0], []))])
    shown = capsys.readouterr()
    assert code == int(expected[1] if expected else 0), f"{line}\n{shown.out}\n{shown.err}"
    return shown.out
