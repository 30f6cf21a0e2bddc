"""Which file system a folder is on, and why a workspace must not be on a network file system.

SQLite's write-ahead log is shared memory of one machine, and a run is alive while the kernel holds its lock. On a
network file system two machines share neither: each would think that it is alone (https://sqlite.org/wal.html, "All
processes using a database must be on the same host computer").
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import psutil

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.workspace import Workspace

OVERRIDE, RISK = "SOUSA_NETWORK_WORKSPACE", "runs-may-be-lost"

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|afpfs|webdav|davfs\d?|9p|ceph|lustre|beegfs\w*|gpfs|glusterfs|afs|vboxsf|prl_fs|ncpfs|coda"
    r"|orangefs|macfuse|osxfuse|fuse"
    # FUSE can be anything. Only these are known to be local:
    r"|fuse\.(?!(?:portal|ext\d?|ntfs(?:-3g)?|exfat|apfs|fuse-overlayfs|unionfs|mergerfs|bindfs|gocryptfs|cryfs|encfs"
    r"|veracrypt|lxcfs|squashfuse|zfs)$).*"
)


def is_network(kind: str) -> bool:
    """Whether this kind of file system ("nfs4", "fuse.sshfs") is, or may be, shared between machines.

    False for "" (unknown).
    """
    return _NETWORK.fullmatch(kind.lower()) is not None


def kind_of(folder: Path) -> str:
    """The kind of file system of `folder`, or of the part of its path that exists: "ext4", "nfs4"; "" if unknown."""
    place = folder.resolve()
    while not _is_there(place) and place != place.parent:
        place = place.parent
    found, longest = "", -1
    try:
        mounted = psutil.disk_partitions(all=True)
    except (OSError, psutil.Error):
        return ""
    for partition in mounted:
        point = partition.mountpoint.rstrip("/")
        if f"{place}/".startswith(f"{point}/") and len(point) >= longest:  # of two on one point the later one counts
            found, longest = partition.fstype, len(point)
    return found


def _is_there(place: Path) -> bool:
    try:
        return place.exists()
    except PermissionError:  # in a folder that we may not read: that folder is all we can know
        return False


def refuse_network(workspace: Workspace, environment: Mapping[str, str] = os.environ) -> None:
    """Raises WorkspaceError if the workspace, runs/ or runs.db is on a network file system.

    SOUSA_NETWORK_WORKSPACE=runs-may-be-lost allows it.
    """
    trouble = network_trouble(workspace)
    if trouble and environment.get(OVERRIDE) != RISK:
        raise WorkspaceError(
            f"{trouble} Set SOUSA_WORKSPACE to a folder on a disk of this machine. "
            f"To accept the risk, set {OVERRIDE}={RISK}."
        )


def taken_risk(workspace: Workspace, environment: Mapping[str, str] = os.environ) -> str:
    """A sentence if a network file system is used anyway, else ""."""
    trouble = network_trouble(workspace) if environment.get(OVERRIDE) == RISK else ""
    return trouble and f"{trouble} {OVERRIDE} allows it: use the workspace from one machine only, and keep backups."


@lru_cache(maxsize=64)
def network_trouble(workspace: Workspace) -> str:
    """Why the workspace is at risk on a network file system, as a sentence; "" if it is on a local one.

    Cached per process and workspace: it is called whenever runs.db is opened."""
    for place in (workspace.root, workspace.runs, workspace.db):  # each may be a link to elsewhere
        kind = kind_of(place)
        if is_network(kind):
            return (
                f"{place} is on {kind}, a network or shared file system, where locks and SQLite's write-ahead log "
                "are unreliable: runs.db could be destroyed and runs could be started twice."
            )
    return ""
