"""Decode every file of a data set before anything is trained on it, without trusting one of them.

Files are handed to worker processes (data/decode.py) that may use only so much memory and time. A file that kills its
worker, or keeps it too long, is named, and the rest goes on. What a file came to is kept in the workspace by path, size
and time, from the first file on: a second scan is quick, and one that was broken off goes on where it was.
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
from sousa_engine.data import headers, synth
from sousa_engine.data import manifest as manifests
from sousa_engine.data.clips import Manifest
from sousa_engine.data.decode import cpu_limit_s
from sousa_engine.data.headers import CURE
from sousa_engine.data.layouts import current
from sousa_engine.data.soundness import Soundness
from sousa_engine.workspace import PROJECT_ROOT, Workspace, intake
from sousa_engine.workspace.intake import Intake, Tell

SCANNING = "scanning"  # what `tell` says: files looked at so far
WORKER = (sys.executable, "-m", "sousa_engine.data.decode")
_VERSION = 2  # raised when the same file would get another verdict
_MOST_WORKERS = 8
_START_S = 300.0  # for a worker to import what it needs: on a crowded machine, a second takes twenty
_POLL_S = 0.2
_MOST_HEADERS = 200_000  # that one process remembers
_TRIES = 2  # a worker may die of something else than its file: only the second death is the file's

_headers: dict[str, Soundness] = {}  # of files that no scan has seen, for as long as this process lives


def open_dataset(config: DataConfig, workspace: Workspace) -> Manifest:
    """manifest.open_dataset without the files that scans so far found unusable, and without trusting the others."""
    return manifests.open_dataset(config, verdicts(config, workspace))


def verdicts(config: DataConfig, workspace: Workspace) -> dict[str, Soundness]:
    """`cached`, and of files that no scan has seen what their headers say, read by workers just now.

    A page or a supervisor thus opens no file of unknown origin itself. Raises as manifest.open_dataset, and
    WorkspaceError if no worker can be started.
    """
    found = cached(config, workspace)
    unseen = unscanned(config, found)
    fresh = []
    for path in unseen:
        with contextlib.suppress(headers.Unusable):
            if current(path, _headers) is None:
                fresh.append(path)
    if len(_headers) + len(fresh) > _MOST_HEADERS:
        _headers.clear()
        fresh = list(unseen)
    with contextlib.closing(judge(fresh, _cores(), command=(*WORKER, "--headers"), wall_s=lambda size: 30.0)) as judged:
        for path, verdict in judged:
            if verdict is not None:
                _headers[str(path)] = replace(verdict, whole=False)
    return found | {str(path): _headers[str(path)] for path in unseen if str(path) in _headers}


def cached(config: DataConfig, workspace: Workspace) -> dict[str, Soundness]:
    """Path -> what scans found, perhaps of a file that has changed since; {} for embedded sets. Opens no audio."""
    return {} if config.dataset in synth.PRESETS else _read(folder_of(config, workspace) / _FILE)


def is_sound(path: Path, verdicts: Mapping[str, Soundness]) -> bool:
    """Whether a scan has decoded this file to its end, as it is now, and nothing was wrong with it."""
    with contextlib.suppress(headers.Unusable):
        known = current(path, verdicts)
        return known is not None and known.whole and not known.error
    return False


def look(config: DataConfig, workspace: Workspace) -> Intake | None:
    """Who scans this data set just now and how far that is, or why the last attempt ended; None: nothing to tell."""
    return intake.look(folder_of(config, workspace))


def folder_of(config: DataConfig, workspace: Workspace) -> Path:
    """Where the verdicts on this folder's or table's files lie, whatever the splits and clip length."""
    name = manifests.absolute(config.dataset).encode("utf-8", "surrogateescape")
    return workspace.cache / "scan" / hashlib.sha256(name).hexdigest()[:32]


def verdicts_stamp(config: DataConfig, workspace: Workspace) -> tuple[int, int]:
    """Changes whenever `cached` would: what a page remembers its answer by."""
    try:
        facts = (folder_of(config, workspace) / _FILE).stat()
    except OSError:
        return (0, 0)
    return facts.st_size, facts.st_mtime_ns


def unscanned(config: DataConfig, verdicts: Mapping[str, Soundness]) -> tuple[Path, ...]:
    """Files of the data set that could be decoded and have no verdict as they are now. Raises as open_dataset."""
    if config.dataset in synth.PRESETS:
        return ()
    _, listing = manifests.list_files(config)
    found = []
    for path in dict.fromkeys(row.path for row in listing.rows):
        with contextlib.suppress(headers.Unusable):
            if current(path, verdicts) is None:
                found.append(path)
    return tuple(found)


def scan(
    config: DataConfig,
    workspace: Workspace,
    *,
    tell: Tell | None = None,
    lock_fd: int | None = None,
    fresh: bool = False,
    workers: int | None = None,
) -> dict[str, Soundness]:
    """Decode every file that has no verdict yet; all verdicts, by path. Nothing is done for embedded sets.

    tell(SCANNING, done, total), in files; what it raises ends the scan, and what was found is kept. Waits while another
    process scans the same, telling how far that is. lock_fd: of intake.lock, taken by who started us. fresh: forget
    what is known. Raises DataError for data that cannot be opened and for a full disk, WorkspaceError for a folder that
    cannot be written to and where no worker can be started.
    """
    if config.dataset in synth.PRESETS:
        return {}
    manifests.list_files(config)  # what is no data set is said before a folder is made for it
    folder = folder_of(config, workspace)
    try:
        lock = lock_fd if lock_fd is not None else _lock(folder, tell)
        with intake.taking_in(folder, lock_fd=lock, tell=tell) as told:
            if fresh:
                (folder / _FILE).unlink(missing_ok=True)
            return _scan(config, folder / _FILE, told, workers or _cores())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"The disk of {workspace.cache} is full. Free some space and try again.") from error
        raise WorkspaceError(f"{folder} cannot be written to: {error.strerror or error}.") from error


# Verdicts that are kept


_FILE = f"verdicts.{_VERSION}.jsonl"


def _scan(config: DataConfig, kept: Path, tell: Tell, workers: int) -> dict[str, Soundness]:
    verdicts = _read(kept)
    todo = unscanned(config, verdicts)
    tell(SCANNING, 0, len(todo))
    if not todo:
        return verdicts
    with kept.open("ab") as file, contextlib.closing(judge(todo, workers)) as judged:
        if file.tell() and not kept.read_bytes().endswith(b"\n"):
            file.write(b"\n")  # after half a line of a scan that was killed
        for done, (path, verdict) in enumerate(judged, 1):
            if verdict is not None:
                verdicts[str(path)] = verdict
                file.write((json.dumps({"path": str(path), **asdict(verdict)}) + "\n").encode())
            if done % 64 == 0 or done == len(todo):
                file.flush()
            tell(SCANNING, done, len(todo))
    return verdicts


def _read(kept: Path) -> dict[str, Soundness]:
    """Later lines win; a line that is not whole is none."""
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
    """The folder's lock, once nobody else has it; meanwhile `tell` hears of the other's progress, and may raise."""
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
    """Each file with its verdict, in the order in which they come; None for one that went away meanwhile.

    wall_s: seconds that a file of so many bytes may take. Raises WorkspaceError if no worker can be started. Closing
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
                for path, verdict in worker.answers():
                    yield path, verdict
            for worker in [w for w in pool if w.ended or time.monotonic() > w.deadline]:
                pool.remove(worker)
                selector.unregister(worker.out)
                path, late = worker.path, not worker.ended
                worker.close()
                if not worker.ready:
                    raise WorkspaceError(f"No process can be started that decodes files: {worker.last_words}.")
                if path is None:
                    continue  # somebody ended it while it had nothing to do
                tries[path] = tries.get(path, 0) + 1
                if late or worker.was_out_of_time or tries[path] >= _TRIES:
                    yield path, _killer(path, worker, late_s=worker.limit_s if late else None)
                else:
                    todo.appendleft(path)


class _Worker:
    """One worker process. path: what it decodes just now. Its answers come in lines, read as far as they are there."""

    def __init__(self, command: Sequence[str]):
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread costs address space
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
            pass  # it has died: its end of the other pipe tells

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
        if self.ended:  # its pipe is closed: let its own end come, so that the signal it died of is seen
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5.0)
        self._process.kill()  # it keeps nothing: there is nothing to save
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
    """The verdict on a file that its worker did not survive."""
    try:
        facts = headers.file_facts(path)
    except headers.Unusable:
        return None
    if worker.was_out_of_time:
        kind, why = "time", f"decoding it takes more than {cpu_limit_s(facts.st_size)} s of processor time"
    elif late_s is not None:
        kind, why = "time", f"decoding it did not end within {late_s:.0f} s"
    else:
        kind, why = "crash", f"the decoder dies of it ({worker.end()})"
    return Soundness(size=facts.st_size, mtime_ns=facts.st_mtime_ns, error=f"{why}; {CURE}", kind=kind)
