"""Decode every file of a data set before a run is trained on it, without trusting any of the files.

Worker processes with limited memory and time (data/decode.py) decode the files. A file that kills its worker, or takes
too long, is named, and the scan continues. The soundness of each file is kept in the workspace by path, size and times
as soon as it is known, so a second scan is quick, and an interrupted one continues where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError, WorkspaceError
from sousa_engine.data import headers, layouts, synth
from sousa_engine.data import manifest as manifests
from sousa_engine.data.decode import cpu_limit_s
from sousa_engine.data.headers import FIX
from sousa_engine.data.layouts import Recordings
from sousa_engine.data.soundness import Soundness
from sousa_engine.workspace import PROJECT_ROOT, Workspace, intake, processes
from sousa_engine.workspace.intake import Intake, Tell

SCANNING = "scanning"  # the phase that `tell` receives
WORKER = (sys.executable, "-m", "sousa_engine.data.decode")
_VERSION = 4  # increased when the soundness of the same file would differ
_MOST_WORKERS = 8
_START_S = 300.0  # for a worker to start: on a busy machine, imports take twenty times as long
_POLL_S = 0.2
_MOST_HEADERS = 200_000  # kept in memory by one process
_TRIES = 2  # a worker may die for another reason, so its file is blamed only the second time

_headers: dict[str, Soundness] = {}  # of files that were not scanned, while this process lives


def soundness(config: DataConfig, recordings: Recordings, workspace: Workspace) -> dict[str, Soundness]:
    """Path -> soundness of each current file: from a scan if there was one, else from its header alone.

    Worker processes read the headers, so that no page or supervisor opens a file of unknown origin itself. A file that
    disappears meanwhile is missing. Raises WorkspaceError if no worker can be started.
    """
    found = layouts.as_now(recordings.paths, cached(config, workspace), _headers)
    fresh = [path for path in recordings.paths if str(path) not in found]
    if len(_headers) + len(fresh) > _MOST_HEADERS:
        _headers.clear()
    command = (*WORKER, "--headers")
    with contextlib.closing(judge(fresh, _cores(), command=command, wall_s=lambda size: 30.0)) as judged:
        for path, one in judged:
            if one is not None:
                found[str(path)] = _headers[str(path)] = replace(one, whole=False)
    return found


def cached(config: DataConfig, workspace: Workspace) -> dict[str, Soundness]:
    """Path -> soundness from earlier scans, when the file may have been another; {} for embedded sets."""
    return {} if config.dataset in synth.PRESETS else _read(folder_of(config, workspace) / _FILE)


def is_sound(path: Path, soundness: Mapping[str, Soundness]) -> bool:
    """Whether a scan decoded the current file to its end and found no error."""
    known = layouts.as_now([path], soundness).get(str(path))
    return known is not None and known.whole and not known.error


def look(config: DataConfig, workspace: Workspace) -> Intake | None:
    """The progress of a running scan of this data set, or why the last one ended; None if there is neither."""
    return intake.look(folder_of(config, workspace))


def folder_of(config: DataConfig, workspace: Workspace) -> Path:
    """Where the scan results of this folder or table are kept. Independent of the splits and the clip length."""
    name = manifests.absolute(config.dataset).encode("utf-8", "surrogateescape")
    return workspace.cache / "scan" / hashlib.sha256(name).hexdigest()[:32]


def stamp(config: DataConfig, workspace: Workspace) -> tuple[int, int]:
    """Changes whenever `cached` does. A page uses it as a key for its own cache."""
    try:
        facts = (folder_of(config, workspace) / _FILE).stat()
    except OSError:
        return (0, 0)
    return facts.st_size, facts.st_mtime_ns


def scan(
    config: DataConfig,
    workspace: Workspace,
    recordings: Recordings | None = None,
    *,
    tell: Tell | None = None,
    lock_fd: int | None = None,
    fresh: bool = False,
    workers: int | None = None,
) -> dict[str, Soundness]:
    """Decode every file that is new or has changed since its scan. Returns the soundness of all scanned files, by path.

    Embedded sets need no scan. recordings: of this data set, if the caller has listed them. tell(SCANNING, done, total)
    counts files; an exception from it ends the scan, and the results so far are kept. While another process scans the
    same data set, this waits and tells the other's progress. lock_fd: of intake.lock, inherited from the parent
    process. fresh: discard earlier results. Raises DataError for data that cannot be opened and for a full disk;
    WorkspaceError if the results cannot be written or no worker can be started.
    """
    if config.dataset in synth.PRESETS:
        return {}
    recordings = recordings or manifests.list_files(config)  # raises before a folder is made
    folder = folder_of(config, workspace)
    try:
        lock = lock_fd if lock_fd is not None else _lock(folder, tell)
        with intake.taking_in(folder, lock_fd=lock, tell=tell) as told:
            if fresh:
                (folder / _FILE).unlink(missing_ok=True)
            return _scan(recordings, folder / _FILE, told, workers or _cores())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"The disk of {workspace.cache} is full. Free some space and try again.") from error
        raise WorkspaceError(f"{folder} cannot be written to: {error.strerror or error}.") from error


# Results that are kept


_FILE = f"verdicts.{_VERSION}.jsonl"


def _scan(recordings: Recordings, kept: Path, tell: Tell, workers: int) -> dict[str, Soundness]:
    known = _read(kept)
    now = layouts.as_now(recordings.paths, known)
    todo = [path for path in recordings.paths if str(path) not in now]
    tell(SCANNING, 0, len(todo))
    if not todo:
        return known
    with kept.open("ab") as file, contextlib.closing(judge(todo, workers)) as judged:
        if file.tell() and not kept.read_bytes().endswith(b"\n"):
            file.write(b"\n")  # a killed scan left an incomplete line
        for done, (path, one) in enumerate(judged, 1):
            if one is not None:
                known[str(path)] = one
                file.write((json.dumps({"path": str(path), **asdict(one)}) + "\n").encode())
            if done % 64 == 0 or done == len(todo):
                file.flush()
            tell(SCANNING, done, len(todo))
    return known


def _read(kept: Path) -> dict[str, Soundness]:
    """Later lines win; incomplete lines are ignored."""
    found: dict[str, Soundness] = {}
    try:
        lines = kept.read_bytes().splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            value = json.loads(line)
            warnings = tuple((kind, reason) for kind, reason in value.pop("warnings"))
            path = value.pop("path")
            found[path] = Soundness(**value, warnings=warnings)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return found


def _lock(folder: Path, tell: Tell | None) -> int:
    """Wait for the folder's lock. Meanwhile `tell` receives the progress of the other process, and may raise."""
    while (found := intake.lock(folder)) is None:
        doing = intake.look(folder)
        if tell and doing and doing.is_running:
            tell(SCANNING, doing.done, doing.total)
        time.sleep(_POLL_S)
    return found


def _cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


# Workers


def judge(
    paths: Sequence[Path],
    workers: int = 1,
    *,
    command: Sequence[str] = WORKER,
    wall_s: Callable[[int], float] = lambda size: 5.0 * cpu_limit_s(size),
) -> Generator[tuple[Path, Soundness | None], None, None]:
    """Yield each file with its soundness, in order of completion; None for a file that disappeared meanwhile.

    wall_s: size in bytes -> seconds that a file may take. Raises WorkspaceError if no worker can be started. Closing
    the iterator ends the workers.
    """
    todo = deque(paths)
    tries: dict[Path, int] = {}
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        pool: list[_Worker] = []
        stack.callback(lambda: [worker.close() for worker in pool])
        while todo or any(worker.path for worker in pool):
            while len(pool) < min(workers, len(todo) + sum(worker.path is not None for worker in pool)):
                worker = _Worker(command)
                pool.append(worker)
                selector.register(worker.out, selectors.EVENT_READ, worker)
            for worker in pool:
                if todo and worker.ready and worker.path is None:
                    worker.ask(todo.popleft(), wall_s)
            soonest = min(worker.deadline for worker in pool)
            ready = selector.select(max(0.0, soonest - time.monotonic()))
            for worker in [key.data for key, _ in ready]:
                yield from worker.answers()
            for worker in [w for w in pool if w.ended or time.monotonic() > w.deadline]:
                pool.remove(worker)
                selector.unregister(worker.out)
                path, late = worker.path, not worker.ended
                worker.close()
                if not worker.ready:
                    raise WorkspaceError(f"No process can be started to decode files: {worker.last_words}.")
                if path is None:
                    continue  # it was killed while idle
                tries[path] = tries.get(path, 0) + 1
                if late or worker.was_out_of_time or tries[path] >= _TRIES:
                    yield path, _killer(path, worker, late_s=worker.limit_s if late else None)
                else:
                    todo.appendleft(path)


class _Worker:
    """One worker process. path: the file that it is decoding. Its answers are lines, read without waiting for more."""

    def __init__(self, command: Sequence[str]):
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        env = processes.environment({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})  # they take address space
        self._process = subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        assert self._process.stdin and self._process.stdout
        self._in, self.out = self._process.stdin, self._process.stdout
        self._rest = b""
        self.ready = self.ended = False
        self.path: Path | None = None
        self.limit_s = 0.0
        self.last_words = ""
        self.deadline = time.monotonic() + _START_S

    def ask(self, path: Path, wall_s: Callable[[int], float]) -> None:
        try:
            size = path.stat().st_size
        except OSError:
            size = 0
        self.path, self.limit_s = path, wall_s(size)
        self.deadline = time.monotonic() + self.limit_s
        try:
            self._in.write((json.dumps({"path": str(path)}) + "\n").encode())
            self._in.flush()
        except BrokenPipeError:
            pass  # it died; the end of the other pipe shows that

    def answers(self) -> Iterator[tuple[Path, Soundness | None]]:
        data = os.read(self.out.fileno(), 65_536)
        self.ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            value = json.loads(line)
            self.deadline = float("inf")
            if "ready" in value:
                self.ready = True
                continue
            assert self.path is not None, "a worker answers when it is asked"
            path, self.path = self.path, None
            warnings = tuple((kind, reason) for kind, reason in value.pop("warnings", ()))
            yield path, None if "gone" in value else Soundness(**value, warnings=warnings)

    def close(self) -> None:
        if self.ended:  # its pipe is closed: wait for its exit, so that the signal that killed it is known
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        self._process.kill()  # it has nothing to save
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.last_words = said[-1] if said else self.end()
        for file in (self._in, self.out, self._errors):
            with contextlib.suppress(OSError):
                file.close()

    @property
    def was_out_of_time(self) -> bool:
        return self._process.returncode == -signal.SIGXCPU

    def end(self) -> str:
        """`signal SIGSEGV`, or `exit code 1`."""
        code = self._process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _killer(path: Path, worker: _Worker, *, late_s: float | None) -> Soundness | None:
    """The soundness of a file that killed its worker or took too long; None if the file is gone."""
    try:
        facts = headers.file_facts(path)
    except headers.Unusable:
        return None
    if worker.was_out_of_time:
        kind, why = "time", f"decoding it takes more than {cpu_limit_s(facts.st_size)} s of processor time"
    elif late_s is not None:
        kind, why = "time", f"decoding it did not finish within {late_s:.0f} s"
    else:
        kind, why = "crash", f"it crashes the decoder ({worker.end()})"
    return Soundness(
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        ctime_ns=facts.st_ctime_ns,
        error=f"{why}; {FIX}",
        kind=kind,
    )
