"""Every command of the README and the quickstart, in an empty folder with only what `gnnstab demo --files FOLDER` writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gnnstab.cli.group import run

from docs.test_examples import ROOT, blocks, run_command
from gnnstab.demo_files import FILES

PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in ("quickstart.md", "nan.md", "commands/diagnose.md"))]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    assert run(["demo", "--files", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == sorted(FILES)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_of_the_page_runs_on_these_files(
    page: Path, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(written)
    monkeypatch.delitem(sys.modules, "network", raising=False)
    ran = 0
    for language, code in blocks(page):
        for line in code.splitlines() if language == "console" else ():
            if line.startswith("$ gnnstab ") and " demo" not in line:
                run_command(line, capsys)
                ran += 1
    assert ran
