"""A long task in a folder, such as taking in weights: one process at a time, with progress that all others can see.

The process that works holds `lock`, which the kernel drops with it; `note.json` has its progress, or why it ended;
partial downloads are next to them. Pages, terminals and trainers all use this, so each of them sees the others'
downloads. Never imports torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from sousa_engine.core.errors import SousaError, WeightsError, WorkspaceError
from sousa_engine.workspace import locks, processes, run_files

LOG = "log.txt"  # output of a process that a page started
STOPPED = "Stopped as requested. Finished parts are kept; the next attempt resumes from there."
_LOCK, _NOTE, _STOP = "lock", "note.json", "stop"
_EVERY_S = 0.5

Tell = Callable[[str, int, int | None], None]
"""`tell(doing, done, total)`: a word such as "downloading"; bytes so far and in total, None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A task that is running or has failed; one that succeeded leaves no note.

    doing: "starting", "downloading", "checking" or "copying". done, total: bytes; total is None if unknown.
    """

    is_running: bool
    doing: str = "starting"
    done: int = 0
    total: int | None = None
    bytes_per_s: float | None = None
    error: str = ""
    at_ms: int = 0  # when this was written


def look(folder: Path) -> Intake | None:
    """The task that runs in `folder`, or why the last one failed; None if there is neither."""
    running = locks.is_held(folder / _LOCK)  # before the note: a process without the lock has written all it ever will
    note = run_files.read_json(folder / _NOTE)
    running = running or locks.is_held(folder / _LOCK)  # unless the note is of a process that just started
    if note is None:
        return Intake(is_running=True) if running else None
    known = {field.name: note[field.name] for field in fields(Intake) if field.name in note}
    found = Intake(**known)
    if running or found.error:
        return replace(found, is_running=running and not found.error)  # an error is final, even before the lock drops
    error = f"It ended unexpectedly while {found.doing}. Try again: finished parts are kept."
    return replace(found, is_running=False, error=error)


def lock(folder: Path) -> int | None:
    """Take the lock of `folder`: its descriptor, to hand to another process, or None if another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = locks.take(folder / _LOCK)
    if found is None:
        return None
    (folder / _STOP).unlink(missing_ok=True)
    _write(folder, Intake(is_running=True))
    return found


def start_in(
    folder: Path, command: Sequence[str], arguments: Sequence[str] = (), prepare: Callable[[], None] = lambda: None
) -> bool:
    """Run `command --lock-fd N arguments` in a separate process that works in `folder`; `look` shows its progress.

    The process inherits the folder's lock. False if another process holds it; else prepare() is called first, under
    the lock. Raises WorkspaceError if the folder cannot be written to.
    """
    try:
        taken = lock(folder)
        if taken is None:
            return False
        try:
            prepare()
            with (folder / LOG).open("wb") as log:
                words = [*command, "--lock-fd", str(taken), *arguments]
                process = processes.start_detached(words, log=log, lock=taken)
        finally:
            os.close(taken)  # the child has it
    except OSError as error:
        raise WorkspaceError(f"{folder} cannot be written to: {error.strerror or error}.") from None
    processes.reap(process)
    return True


def ask_to_stop(folder: Path) -> None:
    """Make the task stop at its next report; a download can be resumed."""
    (folder / _STOP).touch()


@contextlib.contextmanager
def taking_in(folder: Path, *, lock_fd: int | None = None, tell: Tell | None = None) -> Iterator[Tell]:
    """Hold the lock of `folder` (wait for it, or take over lock_fd), and yield a function that records progress.

    It passes the progress on to `tell`, and raises WeightsError if the task was asked to stop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = lock_fd if lock_fd is not None else os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if lock_fd is None:
            fcntl.flock(held, fcntl.LOCK_EX)
            (folder / _STOP).unlink(missing_ok=True)
            _write(folder, Intake(is_running=True))  # replaces that of an earlier task
        notes = _Notes(folder, tell)
        try:
            yield notes.tell
        except (SousaError, KeyboardInterrupt) as error:
            notes.end(str(error) or STOPPED)  # Ctrl-C and a stopped run have no text
            raise
        (folder / _NOTE).unlink(missing_ok=True)
    finally:
        os.close(held)


class _Notes:
    def __init__(self, folder: Path, tell: Tell | None):
        self._folder, self._passed_on = folder, tell
        self._last = Intake(is_running=True)
        self._written_s = self._began_s = float("-inf")
        self._began_at = 0  # bytes that were already there

    def tell(self, doing: str, done: int = 0, total: int | None = None) -> None:
        now = time.monotonic()
        if doing != self._last.doing:
            self._began_s, self._began_at, self._written_s = now, done, float("-inf")
        rate = (
            (done - self._began_at) / (now - self._began_s) if now > self._began_s and done > self._began_at else None
        )
        self._last = Intake(is_running=True, doing=doing, done=done, total=total, bytes_per_s=rate)
        if self._passed_on:
            self._passed_on(doing, done, total)
        if now - self._written_s >= _EVERY_S:
            self._written_s = now
            _write(self._folder, self._last)
            if (self._folder / _STOP).exists():
                raise WeightsError(STOPPED)

    def end(self, error: str) -> None:
        with contextlib.suppress(OSError):  # on a full disk the error itself matters more
            _write(self._folder, replace(self._last, error=error))


def _write(folder: Path, note: Intake) -> None:
    """Atomic, but unlike run_files.write_json without fsync: losing a note costs nothing."""
    temporary = folder / f".{_NOTE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(replace(note, at_ms=time.time_ns() // 1_000_000))))
    temporary.replace(folder / _NOTE)
