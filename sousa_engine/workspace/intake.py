"""Taking in weights: one process at a time for a variant, while everyone else can see how far it is.

A folder an intake. `lock` is held by whoever fetches or imports, and the kernel drops it with that process; `note.json`
says what is going on, or why it ended; parts of broken downloads lie beside them. Pages, terminals and trainers all
come through here, so each of them sees the others' downloads. Never imports torch.
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

LOG = "log.txt"  # what a process started from a page says, beside its note
STOPPED = "Stopped, as asked. What came is kept; the next attempt goes on from there."
_LOCK, _NOTE, _STOP = "lock", "note.json", "stop"
_EVERY_S = 0.5

Tell = Callable[[str, int, int | None], None]
"""`tell(doing, done, total)`: a word such as "downloading"; bytes so far and in all, None where nobody knows."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """One intake, running or ended badly; a good end leaves none, its weights are there.

    doing: "starting", "downloading", "checking" or "copying". done, total: bytes; total is None where nobody knows it.
    """

    is_running: bool
    doing: str = "starting"
    done: int = 0
    total: int | None = None
    bytes_per_s: float | None = None
    error: str = ""
    at_ms: int = 0  # when this was noted


def look(folder: Path) -> Intake | None:
    """What is going on in `folder`, or why the last attempt ended; None if there is nothing to tell."""
    running = locks.is_held(folder / _LOCK)  # before the note: who dropped the lock has written all it ever will
    note = run_files.read_json(folder / _NOTE)
    running = running or locks.is_held(folder / _LOCK)  # unless the note is of somebody who came just now
    if note is None:
        return Intake(is_running=True) if running else None
    known = {field.name: note[field.name] for field in fields(Intake) if field.name in note}
    found = Intake(**known)
    if running or found.error:
        return replace(found, is_running=running and not found.error)  # an error is the end, even before the lock drops
    return replace(
        found, is_running=False, error=f"It ended without a word while {found.doing}. Try again; what came is kept."
    )


def lock(folder: Path) -> int | None:
    """Take the lock of `folder`; its descriptor, to hand to another process, or None while somebody has it."""
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
    """Run `command --lock-fd N arguments` in a separate process that works in `folder`; `look` tells how far it is.

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
    """Have a download end at its next block, resumably."""
    (folder / _STOP).touch()


@contextlib.contextmanager
def taking_in(folder: Path, *, lock_fd: int | None = None, tell: Tell | None = None) -> Iterator[Tell]:
    """Hold the lock of `folder` (wait for it, or take over lock_fd), and keep the note with what the caller tells.

    What the caller tells goes to `tell` as well. Raises WeightsError out of a call of it if asked to stop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = lock_fd if lock_fd is not None else os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if lock_fd is None:
            fcntl.flock(held, fcntl.LOCK_EX)
            (folder / _STOP).unlink(missing_ok=True)
            _write(folder, Intake(is_running=True))  # over the end of an earlier one
        notes = _Notes(folder, tell)
        try:
            yield notes.tell
        except (SousaError, KeyboardInterrupt) as error:
            notes.end(str(error) or STOPPED)  # Ctrl-C and a run's stop say nothing
            raise
        (folder / _NOTE).unlink(missing_ok=True)
    finally:
        os.close(held)


class _Notes:
    def __init__(self, folder: Path, tell: Tell | None):
        self._folder, self._passed_on = folder, tell
        self._last = Intake(is_running=True)
        self._written_s = self._began_s = float("-inf")
        self._began_at = 0  # bytes that were here already

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
    """Whole or not at all; but unlike run_files.write_json not forced to the disk, since a lost note costs nothing."""
    temporary = folder / f".{_NOTE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(replace(note, at_ms=time.time_ns() // 1_000_000))))
    temporary.replace(folder / _NOTE)
