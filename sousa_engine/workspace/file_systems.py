"""Which file system a folder lies on, and why a workspace must not lie on a network's.

SQLite's write-ahead log is shared memory of one machine, and a run lives as long as the kernel holds its lock. On a
network file system two machines share neither: both would think they are alone (https://sqlite.org/wal.html, "All
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
    # What stands behind FUSE is anything. These alone are known to keep to this machine:
    r"|fuse\.(?!(?:portal|ext\d?|ntfs(?:-3g)?|exfat|apfs|fuse-overlayfs|unionfs|mergerfs|bindfs|gocryptfs|cryfs|encfs"
    r"|veracrypt|lxcfs|squashfuse|zfs)$).*"
)


def is_network(kind: str) -> bool:
    """Whether this kind of file system ("nfs4", "fuse.sshfs") is shared between machines, or cannot be known not to be.

    "" (this system does not tell) is not.
    """
    return _NETWORK.fullmatch(kind.lower()) is not None


def kind_of(folder: Path) -> str:
    """The kind of file system that `folder`, or what exists of its path, lies on: "ext4", "nfs4"; "" if unknown."""
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
    except PermissionError:  # in a folder that may not be looked into, which then says as much as we can know
        return False


def refuse_network(workspace: Workspace, environment: Mapping[str, str] = os.environ) -> None:
    """Raises WorkspaceError if the workspace, runs/ or runs.db lies on a network file system.

    The variable SOUSA_NETWORK_WORKSPACE lets it pass, if its value says the risk: runs-may-be-lost.
    """
    trouble = _trouble(workspace)
    if trouble and environment.get(OVERRIDE) != RISK:
        raise WorkspaceError(
            f"{trouble} Set SOUSA_WORKSPACE to a folder on a disk of this machine. "
            f"Whoever takes the risk sets {OVERRIDE}={RISK}."
        )


def taken_risk(workspace: Workspace, environment: Mapping[str, str] = os.environ) -> str:
    """A sentence where a network file system is used all the same, else ""."""
    trouble = _trouble(workspace) if environment.get(OVERRIDE) == RISK else ""
    return trouble and f"{trouble} {OVERRIDE} lets it pass: keep to one machine, and keep backups."


@lru_cache(maxsize=64)
def _trouble(workspace: Workspace) -> str:
    """Once a process and workspace: it is asked whenever runs.db is opened."""
    for place in (workspace.root, workspace.runs, workspace.db):  # each may be a link to elsewhere
        kind = kind_of(place)
        if is_network(kind):
            return (
                f"{place} lies on {kind}, a network or shared file system, where locks and SQLite's write-ahead log "
                "cannot be relied on: runs.db could be destroyed and runs be started twice."
            )
    return ""
