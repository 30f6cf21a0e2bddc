"""Starting processes that outlive their caller: supervisor, keepers, downloads. Each holds a lock while it lives."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from sousa_engine.workspace import PROJECT_ROOT


def start_detached(
    command: Sequence[str], *, log: BinaryIO, lock: int, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, so that it outlives Ctrl-C and the terminal of its caller.

    lock: a descriptor that it inherits; the kernel drops its lock when the process dies. Output goes to `log`, since a
    pipe would die with its reader. Raises OSError.
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


def reap(process: subprocess.Popen[bytes]) -> None:
    """Collect the process when it exits, so that it leaves no zombie."""
    threading.Thread(target=process.wait, daemon=True).start()


def peak_memory_mib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
