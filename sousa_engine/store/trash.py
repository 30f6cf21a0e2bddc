"""Folders of runs that are being deleted; for Store.delete, so that a deletion is whole wherever it is cut short.

Three steps: each folder is renamed to runs/.trash/<id>, the rows go in one transaction, the folders are removed. What
lies in the trash without anybody at work there tells how far a deletion came: a run that still has its row gets its
folder back, the others are removed. Store.open sees to that, so nobody ever reads half a deletion.
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
from sousa_engine.workspace.run_files import sync_folder


@contextlib.contextmanager
def alone(workspace: Workspace, *, wait: bool) -> Iterator[bool]:
    """Nobody else deletes meanwhile. wait=False: yields False at once if somebody does.

    The kernel drops the lock with its process: who finds it free and folders in the trash finds a deletion cut short.
    """
    path = workspace.runs / ".trash.lock"
    try:
        lock = path.open("a")
    except OSError as error:
        raise WorkspaceError(f"Nothing can be deleted: {path} cannot be written: {error.strerror}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def found(workspace: Workspace) -> list[str]:
    """Ids of the runs whose folders lie in the trash. Microseconds where there is none."""
    try:
        names = [place.name for place in workspace.trash.iterdir()]
    except FileNotFoundError:
        return []
    return [name for name in names if _is_id(workspace, name)]


def put_in(workspace: Workspace, run_ids: Iterable[str]) -> None:
    """Rename the runs' folders into the trash, for good even in a power cut. A run without a folder is passed over.

    Raises WorkspaceError; some may have been renamed by then.
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
    """Rename folders back to where they were; what cannot be now is when the store is opened next."""
    for run_id in run_ids:
        with contextlib.suppress(OSError):
            (workspace.trash / run_id).rename(workspace.run_dir(run_id))


def empty(workspace: Workspace, run_ids: Iterable[str]) -> None:
    """Remove folders for good; what cannot be removed now is when the store is opened next."""
    for run_id in run_ids:
        folder = workspace.trash / workspace.run_dir(run_id).name
        if not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(OSError):
            folder.unlink()  # somebody moved the run to another disk: what is there is theirs


def size_bytes(workspace: Workspace, run_ids: Iterable[str]) -> int:
    """What the runs' folders hold on disk, by the sizes of their files."""
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
