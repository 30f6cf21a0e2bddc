"""Checks of the disks, the workspace, its database, and the supervisor that writes to it."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.maintenance import check
from sousa_engine.maintenance.doctor.findings import Finding, Level
from sousa_engine.store import Store, migrations
from sousa_engine.workspace import LEAST_FREE_BYTES, Workspace, file_systems, locks

LITTLE_FREE_BYTES = 2 << 30  # a published backbone and some runs with their checkpoints
_REBUILD = (
    "The run folders hold everything that was measured. Let active runs finish, close the studio, then run: "
    "python -m sousa_engine db rebuild"
)


def disk(name: str, folder: Path, usage: Callable[[Path], object]) -> Finding:
    try:
        free: int = getattr(usage(folder), "free")  # noqa: B009
    except OSError as error:
        text = f"{folder}: {error.strerror}"
        return Finding(
            name=name, level="problem", text=text, fix="Set SOUSA_WORKSPACE or TMPDIR to an existing folder."
        )
    text = f"{free / 2**30:,.1f} GiB free at {folder}"
    if free >= LITTLE_FREE_BYTES:
        return Finding(name=name, level="ok", text=text)
    fix = "Free some space: delete runs that you no longer need (python -m sousa_engine delete), or move the workspace."
    level: Level = "problem" if free < LEAST_FREE_BYTES else "warning"
    return Finding(name=name, level=level, text=text, fix=fix)


def writable(root: Path, trouble: str) -> Finding:
    """trouble: why the workspace cannot be written to, "" if it can."""
    if not trouble:
        new = "" if root.is_dir() else " (created with the first run)"
        return Finding(name="Workspace", level="ok", text=f"{root} is writable{new}")
    fix = "Get write permission there, or set SOUSA_WORKSPACE to another folder."
    return Finding(name="Workspace", level="problem", text=f"{root} is not writable: {trouble}", fix=fix)


def file_system(root: Path, kind: str) -> Finding:
    """On a network file system, locks and SQLite's write-ahead log are unreliable, and runs.db can lose data."""
    if not kind:
        return Finding(name="File system", level="ok", text="unknown kind (this system does not report it)")
    if file_systems.is_network(kind):
        text = f"{root} is on {kind}, a network or shared file system: its locks are unreliable"
        return Finding(name="File system", level="problem", text=text, fix="Set SOUSA_WORKSPACE to a local disk.")
    if kind.lower() in ("tmpfs", "ramfs"):
        text = f"{root} is on {kind}: everything is lost when this machine stops"
        return Finding(name="File system", level="warning", text=text, fix="Set SOUSA_WORKSPACE to a disk.")
    return Finding(name="File system", level="ok", text=kind)


def database(workspace: Workspace, look: Callable[[Workspace], migrations.Look]) -> Finding:
    try:
        folders = check.run_folders(workspace)
        if not workspace.db.exists() and not folders:
            return Finding(name="Database", level="ok", text="none yet; created with the first run")
        if not workspace.db.exists():
            text = f"missing, but there {_folders(folders)}"
            return Finding(name="Database", level="problem", text=text, fix=_REBUILD)
        found = look(workspace)
    except OSError as error:
        text = f"{workspace.db} cannot be read: {error.strerror}"
        fix = "Get read permission, or set SOUSA_WORKSPACE to another folder."
        return Finding(name="Database", level="problem", text=text, fix=fix)
    except WorkspaceError as error:  # a sentence, and its fix
        text, _, fix = str(error).partition(". ")
        fix = fix or "Close other programs that use it, or set SOUSA_WORKSPACE to another folder."
        return Finding(name="Database", level="problem", text=text.rstrip("."), fix=fix)
    if found.trouble:
        text = f"{workspace.db} is damaged: {found.trouble}"
        return Finding(name="Database", level="problem", text=text, fix=_REBUILD)
    unknown = [name for name in folders if name not in found.ids]
    if unknown:
        text = f"{_count(found.runs, 'run')}, but there {_folders(unknown)} not listed in it"
        return Finding(name="Database", level="problem", text=text, fix=_REBUILD)
    newer = "" if found.version == found.latest else f" (upgraded to {found.latest} when it is next opened)"
    return Finding(
        name="Database", level="ok", text=f"schema {found.version}{newer}, intact, {_count(found.runs, 'run')}"
    )


def _folders(names: Sequence[str]) -> str:
    """For "there ...": how many, and the first of them."""
    verb, more = ("is", "") if len(names) == 1 else ("are", ", ...")
    return f"{verb} {_count(len(names), 'run folder')} ({names[0]}{more})"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def supervisor(
    is_alive: bool, waiting: int | None, log: Path, *, is_paused: bool = False, holder: tuple[str, str] | None = None
) -> Finding:
    """waiting: number of queued runs, None if unknown. is_paused: whether all of them are held by a pause.

    holder: what is wrong with the process that holds the supervisor's lock, and the fix; None if nothing is.
    """
    runs = f"{_count(waiting or 0, 'run')} queued"
    if is_alive and holder:
        return Finding(name="Supervisor", level="problem", text=f"{holder[0]}; {runs}", fix=holder[1])
    if is_alive:
        return Finding(name="Supervisor", level="ok", text=f"running; {runs}")
    if waiting and is_paused:
        text = f"not running, not needed: {runs}, but paused (see python -m sousa_engine queue)"
        return Finding(name="Supervisor", level="ok", text=text)
    if waiting:
        text = f"not running, but {runs}"
        fix = f"Open the studio to start it. If it stops again, see {log}."
        return Finding(name="Supervisor", level="warning", text=text, fix=fix)
    return Finding(name="Supervisor", level="ok", text="not running; starts with the next run")


def write_trouble(folder: Path) -> str:
    """Why no file can be created in `folder`, "" if one can. The file is removed at once."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def in_the_way(workspace: Workspace) -> str:
    """Why the workspace cannot be a folder: a file is in its place, or permission is denied; "" if it can."""
    for place in (workspace.root, workspace.runs):
        try:
            if place.exists() and not place.is_dir():
                return f"{place} is a file, but must be a folder"
        except OSError as error:
            return f"{place}: {error.strerror}"
    return ""


def is_supervised(workspace: Workspace) -> bool:
    try:
        return locks.is_held(workspace.supervisor_lock)
    except OSError:  # no supervisor can run there
        return False


def holder(workspace: Workspace) -> tuple[str, str] | None:
    """What is wrong with the process that holds the supervisor's lock, and the fix; None if it is a supervisor at work.

    Any process that can open the file can lock it: then no run starts, although the lock looks like a supervisor's.
    """
    path = workspace.supervisor_lock
    pid = locks.signed_by(path)
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid) if pid else None
        if process and any(re.fullmatch(r"sousa_engine\.(runs\.)?supervisor", word) for word in process.cmdline()):
            if process.status() != psutil.STATUS_STOPPED:
                return None
            return f"suspended (process {pid}): no run starts or ends", f"Let it continue: kill -CONT {pid}"
    names = []
    for other in locks.holders(path):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(other)
            names.append(f"process {other} ({process.name()} of {process.username()})")
    who = ", ".join(names) or "a process that cannot be seen from here"
    return f"{path} is locked by {who}, which is not a supervisor: no run can start", "End that process."


def is_paused(workspace: Workspace) -> bool:
    """Whether runs are queued, and all of them are held by a paused queue or sweep."""
    try:
        with Store.open(workspace, readonly=True) as store:
            return bool(store.queue.count()) and not store.queue.waiting_devices()
    except WorkspaceError:
        return False


def waiting_runs(workspace: Workspace) -> int | None:
    """Number of queued runs, None if runs.db cannot be read."""
    try:
        with Store.open(workspace, readonly=True) as store:
            return store.queue.count()
    except WorkspaceError:
        return None


def nearest_folder(path: Path) -> Path:
    """`path`, or the nearest folder above it that exists."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path("/"))
