from __future__ import annotations

from pathlib import Path

from gnnstab.checkpoint import files_in


def test_checkpoints_in_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("step_10.pt", "step_9.pt", "step_100.ckpt", "notes.txt", "a2.pth", "a10.safetensors", "²3.pt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c1.pt").mkdir()
    (tmp_path / "c2.pt").symlink_to("nowhere")
    names = [path.name for path in files_in(tmp_path).checkpoints]
    assert names == ["a2.pth", "a10.safetensors", "c1.pt", "c2.pt", "step_9.pt", "step_10.pt", "step_100.ckpt", "²3.pt"]
