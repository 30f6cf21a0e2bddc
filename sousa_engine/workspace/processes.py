"""Starting processes that outlive who starts them: supervisor, keepers, downloads. Each holds a lock: proof of life."""

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


def reap(process: subprocess.Popen[bytes]) -> None:
    """See that no zombie stays when it leaves."""
    threading.Thread(target=process.wait, daemon=True).start()


def peak_memory_mib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
