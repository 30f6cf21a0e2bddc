"""See that a supervisor runs: start one where its lock is free, replace one that was killed."""

from __future__ import annotations

import os
import signal
import sys
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
_RETIRING_S = 10.0  # a supervisor that was asked to leave ends its round first


def ensure(workspace: Workspace, options: Sequence[str] = ()) -> bool:
    """See that a supervisor runs; True if one had to be started. Costs microseconds if not, and does not wait,
    but for a supervisor of an earlier version to leave.

    Call it after every enqueue or stop. The lock is taken here and handed to the new process, so of any number of
    callers at once exactly one starts a supervisor. Raises WorkspaceError if the folder is read-only.
    """
    try:
        workspace.runs.mkdir(parents=True, exist_ok=True)
        lock = locks.take(workspace.supervisor_lock)
        if lock is None and _retire(workspace):
            lock = locks.take_within(workspace.supervisor_lock, _RETIRING_S)
        if lock is None:
            return False
    except OSError as error:
        raise WorkspaceError(f"No supervisor can start in {workspace.runs}: {error.strerror}.") from None
    module = [sys.executable, "-m", "sousa_engine.runs.supervisor"]
    command = [*module, str(workspace.root), "--lock-fd", str(lock), *options]
    try:
        with _open_log(workspace.supervisor_log) as log:
            process = processes.start_detached(command, log=log, lock=lock)
    finally:
        os.close(lock)  # the child has it
    processes.reap(process)
    return True


def revive(workspace: Workspace) -> bool:
    """`ensure`, where a run lives or waits or a sweep runs: for whoever watches, some times a second.

    A supervisor that was killed is replaced so, and none is started only to leave again. Raises WorkspaceError.
    """
    if not workspace.has_db or (locks.is_held(workspace.supervisor_lock) and not _retire(workspace)):
        return False
    with Store.open(workspace) as store:
        busy = store.queue.live() or store.queue.waiting_devices() or store.sweeps.all([SweepStatus.RUNNING])
    return bool(busy) and ensure(workspace)


def _open_log(path: Path) -> BinaryIO:
    if run_files.size(path) > _LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path.open("ab")


def _retire(workspace: Workspace) -> bool:
    """Ask a supervisor of an earlier version to leave: the modules that it would start runs with have moved.

    False if the lock's holder is none.
    """
    pid = locks.signed_by(workspace.supervisor_lock)
    if pid is None:
        return False
    with suppress(psutil.Error, OSError):
        words = psutil.Process(pid).cmdline()
        if _FORMER in words and str(workspace.root) in words:
            os.kill(pid, signal.SIGTERM)
            return True
    return False
