"""See that a supervisor runs: start one if the lock is free, and replace one of an earlier version."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.core.records import SweepStatus
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace, locks, processes, run_files

_LOG_BYTES = 1 << 20
_FORMER = "sousa_engine.supervisor"  # the module's name until version 0.1.0
_RETIRING_S = 10.0  # a supervisor that was asked to leave finishes its round first


def ensure(workspace: Workspace, options: Sequence[str] = ()) -> bool:
    """See that a supervisor runs. True if this call started one.

    Call it after every enqueue or stop. If a supervisor runs, it costs microseconds; it waits only while a supervisor
    of an earlier version leaves. The lock is taken here and handed to the new process, so that of any number of
    concurrent callers exactly one starts a supervisor. Raises WorkspaceError if it cannot be started.
    """
    try:
        workspace.make()
        lock = locks.take(workspace.supervisor_lock)
        if lock is None and (former := _former(workspace)):
            lock = _take_from(former, workspace.supervisor_lock)
        if lock is None:
            return False
        module = [sys.executable, "-m", "sousa_engine.runs.supervisor"]
        command = [*module, str(workspace.root), "--lock-fd", str(lock), *options]
        try:
            with _open_log(workspace.supervisor_log) as log:
                process = processes.start_detached(command, log=log, lock=lock)
        finally:
            os.close(lock)  # the child has it
    except OSError as error:
        raise WorkspaceError(f"No supervisor can start in {workspace.runs}: {error.strerror or error}.") from None
    processes.reap(process)
    return True


def revive(workspace: Workspace) -> bool:
    """`ensure`, but only if a run is active or queued, or a sweep is open. For a watcher that calls it every second.

    It replaces a supervisor that was killed, and starts none that would leave at once. Raises WorkspaceError.
    """
    if not workspace.has_db or (locks.is_held(workspace.supervisor_lock) and _former(workspace) is None):
        return False
    with Store.open(workspace) as store:
        busy = store.queue.live() or store.queue.waiting_devices() or store.sweeps.all([SweepStatus.RUNNING])
    return bool(busy) and ensure(workspace)


def _open_log(path: Path) -> BinaryIO:
    if run_files.size(path) > _LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path.open("ab")


def _former(workspace: Workspace) -> psutil.Process | None:
    """The holder of the lock, if it is a supervisor of an earlier version.

    The modules that it would start runs with have moved, so it has to be replaced.
    """
    pid = locks.signed_by(workspace.supervisor_lock)
    if pid is None:
        return None
    with suppress(psutil.Error, OSError, ValueError):  # gone, not ours to look at, or another program
        process = psutil.Process(pid)
        words = process.cmdline()
        (root,) = words[words.index(_FORMER) + 1 :][:1]
        if Path(process.cwd(), root).resolve() == workspace.root.resolve():
            return process
    return None


def _take_from(former: psutil.Process, path: Path) -> int | None:
    """Ask a supervisor to leave, and take the lock from it. None if another caller was first, or it does not leave."""
    with suppress(psutil.Error):  # it has left already
        former.terminate()
    end = time.monotonic() + _RETIRING_S
    while (lock := locks.take(path)) is None and locks.signed_by(path) == former.pid and time.monotonic() < end:
        time.sleep(0.02)
    return lock
