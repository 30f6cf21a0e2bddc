"""The folders of runs that are being deleted. Makes a deletion atomic, even if its process dies half-way.

Three steps: each folder is renamed to runs/.trash/<id>, the rows are deleted in one transaction, the folders are
removed. Folders in the trash while the lock is free come from an interrupted deletion: a run that still has its row
gets its folder back, the other folders are removed. Store.open does that, so half a deletion is never seen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.workspace import Workspace
from sousa_engine.workspace.locks import private
from sousa_engine.workspace.run_files import sync_folder


@contextlib.contextmanager
def alone(workspace: Workspace, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of deletions and yield True. wait=False: yield False at once if another process holds it.

    The kernel releases the lock when its process dies. Raises WorkspaceError if the lock file cannot be opened.
    """
    path = workspace.runs / ".trash.lock"
    try:
        lock = open(path, "a", opener=private)  # noqa: SIM115
    except OSError as error:
        raise WorkspaceError(f"Nothing can be deleted because {path} cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def found(workspace: Workspace) -> list[str]:
    """Ids of the runs whose folders are in the trash. Takes microseconds if there are none."""
    try:
        names = [place.name for place in workspace.trash.iterdir()]
    except FileNotFoundError:
        return []
    return [name for name in names if _is_id(workspace, name)]


def put_in(workspace: Workspace, run_ids: Iterable[str]) -> None:
    """Move the folders of runs into the trash, safe against a power cut. Runs without a folder are skipped.

    Raises WorkspaceError; some folders may have been moved by then.
    """
    folder = workspace.runs
    try:
        workspace.trash.mkdir(exist_ok=True)
        for run_id in run_ids:
            folder = workspace.run_dir(run_id)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(workspace.trash / run_id)
        for changed in (workspace.trash, workspace.runs):
            sync_folder(changed)
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be moved to {workspace.trash}: {error.strerror}.") from None


def put_back(workspace: Workspace, run_ids: Iterable[str]) -> None:
    """Move folders back to where they were; one that cannot be moved now is moved when the store is next opened."""
    for run_id in run_ids:
        with contextlib.suppress(OSError):
            (workspace.trash / run_id).rename(workspace.run_dir(run_id))


def empty(workspace: Workspace, run_ids: Iterable[str]) -> None:
    """Delete folders; one that cannot be deleted now is deleted when the store is next opened."""
    for run_id in run_ids:
        folder = workspace.trash / workspace.run_dir(run_id).name
        if not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            folder.unlink()  # the user moved the run to another disk: keep the files there


def size_bytes(workspace: Workspace, run_ids: Iterable[str]) -> int:
    """The sum of the sizes of all files in the folders of these runs."""
    return sum(_size(workspace.run_dir(run_id)) for run_id in run_ids)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_size
    return total


def _is_id(workspace: Workspace, name: str) -> bool:
    try:
        workspace.run_dir(name)
    except ValueError:
        return False
    return True
