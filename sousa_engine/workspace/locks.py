"""File locks. The kernel drops a lock when its holder dies, so a held lock means a living process.

Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_LOOKING_S = 1.0  # `is_held` looks for microseconds, or as long as a busy machine lets it wait


def take(path: Path) -> int | None:
    """The descriptor of the locked file, to keep or to hand to a child; None if another process holds the lock.

    A file that was just locked names no holder until `sign`.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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


def sign(lock: int) -> None:
    """Write this process's pid into a lock file that it holds."""
    text = f"{os.getpid()}\n".encode()
    os.ftruncate(lock, 0)
    os.pwrite(lock, text, 0)


def signed_by(path: Path) -> int | None:
    """The pid that `sign` wrote, or None. Another program may have that pid by now: check before you signal it."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isascii() and text.isdecimal() else None


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
