"""The files of a run's folder: their names, and JSON that is either old or new, never half-written.

Standard library only: the keeper imports this and nothing else of the engine, so that it starts in milliseconds.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

CONFIG = "config.json"  # RunConfig of the attempt, with the device of its slot: by the supervisor
SPOOL = "spool.jsonl"  # metrics, progress, events, facts: appended by the trainer
PREDICTIONS = "predictions.jsonl"  # one line per clip: by the trainer at its end
RESULT = "result.json"  # {"outcome": "finished|stopped|failed", "reason": ..., ...}: by the trainer at its end
LOG = "train.log"  # stdout and stderr of keeper and trainer
KEEPER = "keeper.json"  # the keeper of this attempt: nonce, pids, start, and the steps of a stop as they are taken
KEEPER_LOCK = "keeper.lock"  # held while the keeper or the trainer is alive
EXIT = "exit.json"  # how the trainer ended: code or signal, kills for lack of memory, steps of a stop

OUTCOMES = ("finished", "stopped", "failed")
EXIT_FINISHED = 0
EXIT_USER_ERROR = 2
EXIT_STOPPED = 3
EXIT_INTERRUPTED = 130  # of a command ended by Ctrl-C, as in shells; its run may continue
EXIT_DISK_FULL = 4  # known even if there was no room for result.json

CPU_SLOTS = "SOUSA_CPU_SLOTS"  # environment variable of a trainer on the CPU: how many runs could train there
_MOST_WHOLE = 253_402_214_400_000  # as a time in ms: the end of the year 9999
LONGEST_JSON = 64 << 20  # bytes; a config with every module of a large network has less than one

# Steps of an attempt, as the keeper records them
STARTED, COULD_NOT_START, SAVE, GRACE_OVER, AT_ONCE = "started", "could not start", "SIGTERM", "SIGKILL", "SIGKILL now"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write, fsync, rename: after a crash the file has the old value or the new one, complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class Irregular(OSError):
    """In the place of a file there is something else, or a file that is far too long."""


def open_file(path: Path) -> BinaryIO:
    """Open a file of a workspace for reading. Raises OSError; Irregular for anything but a regular file.

    A FIFO would wait for a writer for good, and a device has no end: neither is opened by chance, as a copied or an
    unpacked folder may hold them.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Irregular(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = LONGEST_JSON) -> bytes:
    """The content of a file of a workspace. Raises OSError, Irregular if it has more than `most` bytes."""
    with open_file(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise Irregular(errno.EFBIG, f"longer than {most:,} bytes", str(path))
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None if there is no such file, or no JSON object in it. Raises OSError."""
    try:
        value = json.loads(read_bytes(path))
    except (FileNotFoundError, Irregular, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_keeper(path: Path) -> dict[str, Any] | None:
    """The note of a keeper, checked; None if it is missing, incomplete or not one."""
    return _note(path, {"nonce": str, "started_ms": int, "pid": int | None, "trainer_pid": int | None})


def read_exit(path: Path) -> dict[str, Any] | None:
    """How an attempt ended, as its keeper wrote it, checked; None if it is missing, incomplete or not one."""
    times = {"started_ms": int, "ended_ms": int}
    counts = {"exit_code": int | None, "signal": int | None, "oom_kills": int | None}
    return _note(path, {"nonce": str, **times, **counts})


def read_result(path: Path) -> dict[str, Any] | None:
    """What the trainer said of its end, checked; None if it is missing, incomplete or not one."""
    found = read_json(path)
    if found is None or found.get("outcome") not in OUTCOMES or not isinstance(found.get("reason"), str | None):
        return None
    return found


def _note(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any] | None:
    found = read_json(path)
    if found is None or not all(_is(found.get(name), kind) for name, kind in kinds.items()):
        return None
    found = {**dict.fromkeys(kinds), "steps": [], **found}
    steps = found["steps"]
    good = isinstance(steps, list) and all(
        isinstance(one, dict) and _is(one.get("at_ms"), int) and isinstance(one.get("step"), str) for one in steps
    )
    return found if good else None


def _is(value: Any, kind: Any) -> bool:
    """Whole numbers count only if a database and a calendar can hold them."""
    return isinstance(value, kind) and not (isinstance(value, int) and abs(value) > _MOST_WHOLE)


def tail(path: Path, lines: int, max_bytes: int = 65536) -> list[str]:
    """The last non-blank lines of a log, without reading all of it; [] if there is no such file."""
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read(max_bytes).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    # A progress bar rewrites its line with carriage returns: the last version counts.
    found = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in found if line][-lines:]


def boot_id() -> str | None:
    """An id that changes whenever the machine is started; None if the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def written_ms(path: Path) -> int | None:
    """When a file was last written, in ms since 1970; None if there is none."""
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except FileNotFoundError:
        return None
