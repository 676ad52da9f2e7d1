"""No file of the reader's is removed, replaced or written through a link by what gnnstab makes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from gnnstab.cli.group import run
from torch_geometric.nn import TransformerConv

from gnnstab import demo, fixes
from gnnstab.demo_files import FILES
from gnnstab.errors import UsageError
from gnnstab.report import saving


def _contents(folder: Path) -> dict[str, object]:
    """Name → what lies there, links as links."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def _export(path: Path) -> None:
    model = TransformerConv(8, 8, heads=2)
    fixes.export({f"c.{k}": v for k, v in model.state_dict().items()}, "qk-clip", path, scores={"c": [5e2, 6e2]}, degree=4)  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "repaired.pt"])
def test_a_link_to_nothing_is_not_written_through(name: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "given", tmp_path / "outside"
    folder.mkdir()
    (folder / name).symlink_to(outside)
    if name in FILES:
        assert run(["demo", "--files", str(folder)]) == 2
    else:
        with pytest.raises(UsageError, match="exists; give a new file"):
            _export(folder / name)
    assert _contents(tmp_path) == {"given": False, f"given/{name}": outside}


def test_the_demonstration_takes_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    (folder / "demo-plan.gnnstab-notes").mkdir(parents=True)
    for name in ("demo-monday.gnnstab", "demo-3.gnnstab-wal", "demo.html"):
        (folder / name).write_text("of somebody")
    (tmp_path / "mine-2").symlink_to("nothing")
    (tmp_path / "mine-3").write_text("a file")
    before, given = _contents(tmp_path), []

    def stop(where: Path, say: Callable[[str], None]) -> None:
        given.append(where)
        raise UsageError("stop here")

    monkeypatch.setattr(demo, "run", stop)
    assert run(["demo", "--folder", str(folder)]) == 2
    assert given == [tmp_path / "mine-4"]
    assert _contents(tmp_path) == {**before, "mine-4": False}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no folder below /dev that anybody may write into")
def test_a_link_below_dev_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("of somebody")
    link = Path("/dev/shm") / f"report-{uuid.uuid4()}.json"
    link.symlink_to(mine)
    try:
        saving.write(link, "{}")
        assert mine.read_text() == "of somebody"
        assert link.read_text() == "{}" and not link.is_symlink()
    finally:
        link.unlink()
