"""Which journal a trace may use: WAL needs shared memory, which network file systems do not give."""

from __future__ import annotations

import os
import re
from pathlib import Path

NETWORK = {
    *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "ncpfs", "davfs", "9p"),
    *("lustre", "gpfs", "beegfs", "ceph", "glusterfs", "pvfs2", "orangefs", "panfs", "wekafs"),
}
"""Types of mounted file systems that live on another machine; ``fuse.*`` is judged by `FUSE_NETWORK`."""

FUSE_NETWORK = {
    *("sshfs", "s3fs", "gcsfuse", "goofys", "blobfuse", "blobfuse2", "rclone", "cvmfs"),
    *("glusterfs", "ceph", "juicefs", "beegfs"),
}
"""Programs behind ``fuse.<program>`` whose files live on another machine."""


def network_type(path: str, mounts: str) -> str | None:
    """Name the network file system that holds ``path``, or None for a local one.

    ``path`` is absolute; ``mounts`` has the form of ``/proc/mounts``: device, mount point, type, … per line, blanks in
    the mount point written as ``\\040``. The longest mount point that contains the path decides, the last one of equals.
    """
    holder, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = re.sub(r"\\(040|011|012|134)", lambda code: chr(int(code[1], 8)), fields[1])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(holder):
            holder, kind = point, fields[2].lower()
    program = kind.removeprefix("fuse.")
    return kind if kind in NETWORK or (kind != program and program in FUSE_NETWORK) else None


def network_type_here(path: str) -> str | None:
    """`network_type` with the mounts of this machine; None where they cannot be read."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape")
        return network_type(os.path.realpath(path), mounts)
    except OSError:
        return None
