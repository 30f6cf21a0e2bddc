"""Starting processes that outlive who starts them: supervisor, keepers, downloads. Each holds a lock: proof of life."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.workspace import PROJECT_ROOT


def start_detached(
    command: Sequence[str], *, log: BinaryIO, lock: int, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own: it outlives Ctrl-C and the closed terminal of its caller.

    lock: a descriptor that it inherits, and whose lock the kernel drops when it dies. Its output goes to `log`: a pipe
    would die with its reader. Raises OSError.
    """
    return subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[lock],
        env=env,
    )


def start_in(folder: Path, command: Sequence[str], prepare: Callable[[], None] = lambda: None) -> bool:
    """Have `command` do its work in `folder`, whose lock it inherits as --lock-fd; intake.look tells how far it is.

    False if somebody is at it already; else prepare() is called first, under the lock. Raises WorkspaceError if the
    folder cannot be written to.
    """
    from sousa_engine.workspace import intake  # a supervisor, which starts processes too, need not wait for it

    try:
        lock = intake.lock(folder)
        if lock is None:
            return False
        try:
            prepare()
            with (folder / intake.LOG).open("wb") as log:
                process = start_detached([*command, "--lock-fd", str(lock)], log=log, lock=lock)
        finally:
            os.close(lock)  # the child has it
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written to: {error.strerror or error}.") from None
    reap(process)
    return True


def reap(process: subprocess.Popen[bytes]) -> None:
    """See that no zombie stays when it leaves."""
    threading.Thread(target=process.wait, daemon=True).start()
