"""File locks. The kernel drops a lock when its holder dies, so a held lock means a living process.

Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from sousa_engine.workspace import run_files

_LOOKING_S = 1.0  # `is_held` looks for microseconds, or as long as a busy machine lets it wait


def take(path: Path) -> int | None:
    """The descriptor of the locked file, to keep or to hand to a child; None if another process holds the lock.

    Only its owner may open the file: whoever can read a file can also lock it. A file that was just locked names no
    holder until `sign`.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    with contextlib.suppress(PermissionError):  # of another account, which shares its workspace with us
        os.fchmod(lock, 0o600)  # made by an earlier version
    end = time.monotonic() + _LOOKING_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(lock, 0)
            return lock
        except BlockingIOError:
            if _is_held(lock) or time.monotonic() > end:
                os.close(lock)
                return None
        time.sleep(0.0005)  # another process only checked whether it is held


def private(path: str, flags: int) -> int:
    """For `open(..., opener=private)`: the file that it creates belongs to this account alone."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def sign(lock: int) -> None:
    """Write this process's pid into a lock file that it holds."""
    text = f"{os.getpid()}\n".encode()
    os.ftruncate(lock, 0)
    os.pwrite(lock, text, 0)


def signed_by(path: Path) -> int | None:
    """The pid that `sign` wrote, or None. Another program may have that pid by now: check before you signal it."""
    try:
        text = run_files.read_bytes(path, 64).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isascii() and text.isdecimal() else None


def holders(path: Path) -> tuple[int, ...]:
    """Pids of the processes that took the lock of this file, as far as the system tells (Linux); () otherwise.

    A lock that was handed on to a child may be listed with the pid of the process that took it.
    """
    try:
        number = path.stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ()
    found = [words for line in lines if len(words := line.split()) >= 6 and words[1] == "FLOCK"]
    return tuple(int(words[4]) for words in found if words[5].rpartition(":")[2] == str(number) and words[4] != "-1")


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return _is_held(file)
    finally:
        os.close(file)


def _is_held(file: int) -> bool:
    """Whether another process holds the exclusive lock. A shared one tells, and is released at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False
