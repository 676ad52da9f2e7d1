"""What `--store` names is a plain file, or is refused before anything waits for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import forked
from gnnstab.errors import UsageError
from gnnstab.verification._sweep import sweep


@pytest.mark.parametrize("target", ["pipe", "folder", "device"])
def test_a_store_that_is_no_file_is_refused(target: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")

    def body() -> str:
        with pytest.raises(UsageError) as caught:
            sweep({"a": int}, store=tmp_path / target, load=int)
        return str(caught.value)

    assert "is not a regular file" in forked.Child(body).result(60)
