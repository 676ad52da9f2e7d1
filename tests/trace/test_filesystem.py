from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gnnstab.trace import Trace, TraceWriter
from gnnstab.trace._filesystem import network_type, network_type_here

MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/export/home /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/fast xfs rw 0 0
10.0.0.1@o2ib:/scratch /scratch lustre rw,flock 0 0
//nas/data /mnt/my\\040data cifs rw 0 0
me@host:/x /mnt/ssh fuse.sshfs rw 0 0
portal /mnt/portal fuse.portal rw 0 0
gpfs0 /gpfs gpfs rw 0 0
beegfs_nodev /bee beegfs rw 0 0
/dev/sdc1 /gpfs ext4 rw 0 0

broken
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/run.gnnstab", None),
        ("/dev/shm/run.gnnstab", None),
        ("/home/me/run.gnnstab", "nfs4"),
        ("/home/fast/run.gnnstab", None),
        ("/home/faster/run.gnnstab", "nfs4"),
        ("/homework/run.gnnstab", None),
        ("/scratch/run.gnnstab", "lustre"),
        ("/mnt/my data/run.gnnstab", "cifs"),
        ("/mnt/ssh/a/b", "fuse.sshfs"),
        ("/mnt/portal/a", None),
        ("/bee/a", "beegfs"),
        ("/gpfs/a", None),
    ],
)
def test_the_mount_that_holds_the_path_decides(path: str, expected: str | None) -> None:
    assert network_type(path, MOUNTS) == expected


def test_no_mounts_means_local() -> None:
    assert network_type("/a", "") is None


def test_this_folder_can_be_asked_about(tmp_path: Path) -> None:
    assert network_type_here(str(tmp_path)) in (None, "9p", "nfs", "nfs4", "ceph", "lustre")


def test_a_local_trace_uses_wal_and_says_so(path: Path) -> None:
    with TraceWriter(path) as writer:
        assert Path(f"{path}-wal").exists()
        with writer.read() as trace:
            assert trace.meta["journal"] == "wal"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_trace_on_a_network_file_system_uses_a_rollback_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch, record: Callable[..., None]
) -> None:
    monkeypatch.setattr("gnnstab.trace._store.network_type_here", lambda path: "nfs4")
    with TraceWriter(path) as writer:
        record(writer, range(20))
        writer.flush()
        assert not Path(f"{path}-wal").exists()
        connection = sqlite3.connect(path)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        connection.close()
        # A reader that stays open must not keep the writer out, as it would with a rollback journal.
        with Trace.open(path) as trace:
            assert trace.meta["journal"] == "rollback (nfs4)"
            record(writer, range(20, 40))
            writer.flush()
            assert writer.failure is None
            assert trace.last_step == 19
        with Trace.open(path) as trace:
            assert trace.last_step == 39
    assert [file.name for file in path.parent.iterdir()] == [path.name]
