"""Starting processes that outlive their caller: supervisor, keepers, downloads. Each holds a lock while it lives."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from sousa_engine.workspace import PROJECT_ROOT

# How OpenMP's threads wait. GNU's and LLVM's runtimes both read the first name, each reads one of the others.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def environment(more: Mapping[str, str] | None = None, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a process that computes: `base` and `more`, with threads that sleep while they wait.

    By default OpenMP's threads spin. Beside other programs they then take cores from the very threads that they wait
    for, and a training step takes many times as long. What the user has set about waiting is kept.
    """
    found = {**base, **(more or {})}
    return found if any(name in found for name in _WAITING) else found | {_WAITING[0]: "PASSIVE"}


def start_detached(
    command: Sequence[str], *, log: BinaryIO, lock: int, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, so that it outlives Ctrl-C and the terminal of its caller.

    lock: a descriptor that it inherits; the kernel drops its lock when the process dies. Output goes to `log`, since a
    pipe would die with its reader. env: what `environment` makes of ours unless given. Raises OSError.
    """
    return subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        pass_fds=[lock],
        env=environment() if env is None else env,
    )


def reap(process: subprocess.Popen[bytes]) -> None:
    """Collect the process when it exits, so that it leaves no zombie."""
    threading.Thread(target=process.wait, daemon=True).start()


def peak_memory_mib() -> float:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
