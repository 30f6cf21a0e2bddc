"""File locks. The kernel drops a lock when its holder dies, so a held lock means a living process.

Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


def take(path: Path) -> int | None:
    """The descriptor of the locked file, to keep or to hand to a child; None while another process holds the lock."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def take_within(path: Path, seconds: float) -> int | None:
    """`take`, tried until it succeeds or `seconds` have passed."""
    end = time.monotonic() + seconds
    while (lock := take(path)) is None and time.monotonic() < end:
        time.sleep(0.02)
    return lock


def sign(lock: int) -> None:
    """Write this process's pid into a lock file that it holds."""
    text = f"{os.getpid()}\n".encode()
    os.ftruncate(lock, 0)
    os.pwrite(lock, text, 0)


def signed_by(path: Path) -> int | None:
    """The pid that `sign` wrote, or None. It may have been given to another program since: look before you signal."""
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isascii() and text.isdecimal() else None


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file; the kernel drops it with the process."""
    try:
        probe = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(probe)
    return False
