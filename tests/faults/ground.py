"""A workspace to do harm to: real supervisors, keepers and trainers (a double), and the count of what it did to them.

Nothing here asks the product whether it is well: acknowledged rows come from the trainer's ledger, rows by plain SQL,
processes from the system, checkpoints by their checksums.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import psutil

from sousa_engine.core.config import build
from sousa_engine.core.errors import RunError, SousaError
from sousa_engine.core.records import Run, RunStatus
from sousa_engine.store import Store
from sousa_engine.training import checkpoint, resume
from sousa_engine.workspace import PROJECT_ROOT, Workspace, locks, run_files
from tests.faults.double import loss, words_of

SUPERVISOR, KEEPER, TRAINER = "sousa_engine.runs.supervisor", "sousa_engine.runs.keeper", "tests.faults.double"
WORDS = "steps=100 pause_s=0.006 every=8"
INJECT = Path(__file__).with_name("inject")
_PATIENCE_S = 180.0  # until a run without an end counts as one


@dataclass
class Tally:
    """What came of some rounds. Everything from `lost` on must be 0."""

    rounds: int = 0
    acknowledged: int = 0  # rows, by the ledgers
    resumed: int = 0  # runs that were resumed to their end afterwards
    lost: int = 0  # rows that were acknowledged and are not in runs.db, or not as they were
    doubled: int = 0  # rows that count twice, or that nobody measured
    endless: int = 0  # runs without an end
    untrue: int = 0  # runs whose end is not what happened to them
    orphans: int = 0  # processes that outlived their run
    unreadable: int = 0  # runs whose newest checkpoint is not whole
    databases: int = 0  # integrity_check that found something
    notes: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, int]:
        names = [f.name for f in fields(self)]
        return {name: getattr(self, name) for name in names[names.index("lost") : names.index("notes")]}

    def add(self, other: Tally) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True)
class Pace:
    """How long a start, a training and its rows take; see `measure`."""

    start_s: float = 1.0
    train_s: float = 0.5
    rows_s: float = 0.5


class Ground:
    """One workspace; one run a round. Belongs to one thread. `with` ends every process of it, whatever happened."""

    def __init__(self, root: Path, ledgers: Path, seed: str, env: Mapping[str, str] | None = None):
        self.workspace = Workspace(root=root.resolve())
        self.random = random.Random(seed)
        self.tally = Tally()
        self.ledgers = ledgers
        self.env = {"FAULTS_LEDGERS": str(ledgers), "FAULTS_ROOT": str(self.workspace.root), **(env or {})}
        self._log = ledgers / f"{root.name}.log"  # outside of the workspace: its disk may be full
        self.options = ["--grace-s", "60", "--idle-exit-s", "60"]
        self.supervisors: list[subprocess.Popen] = []
        self.store = Store.open(self.workspace)
        self.pace = Pace()
        self.command_s = 0.1  # see `command`

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill_everything()
        self.store.close()

    # What a user does

    def queue(self, words: str = WORDS) -> str:
        return self.store.runs.enqueue(build({"name": words})).id

    def supervise(self, more: int = 0) -> None:
        """See that a supervisor lives, as the app does about once a second. more: that many beside it."""
        self.supervisors = [process for process in self.supervisors if process.poll() is None]
        while len(self.supervisors) < 1 + more:
            if self.supervisors:
                self.wait(lambda: locks.is_held(self.workspace.supervisor_lock), "held lock")
                self.workspace.supervisor_lock.unlink()  # as someone did who tidied up
            command = [sys.executable, "-m", SUPERVISOR, str(self.workspace.root)]
            self.supervisors.append(
                subprocess.Popen(
                    [*command, "--trainer-module", TRAINER, *self.options],
                    cwd=PROJECT_ROOT,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._log.open("ab"),
                    start_new_session=True,
                )
            )

    def measure(self) -> None:
        """How long a start, a training and its rows take here and now: random moments are spread over them.

        Nothing is done to this run, so it must finish and all its rows must be counted: else no count could be trusted.
        """
        run_id = self.queue()
        self.supervise()
        began = time.monotonic()
        self.pid(TRAINER, run_id)
        launched = time.monotonic()
        self.first_row(run_id)
        first_row = time.monotonic()
        run = self.over(run_id)
        ended = time.monotonic()
        assert run.status is RunStatus.FINISHED, f"{run.status.value}: {run.reason}; {self.log()}"
        assert self.ledger(run_id) == dict.fromkeys(self.rows(run_id), 1) and len(self.ledger(run_id)) == 100
        self.pace = Pace(launched - began, ended - launched, ended - first_row)

    def command(self, *words: object, kill: bool = False) -> str:
        """What a command says. kill: SIGKILL at a random moment from its first look at runs.db on."""
        looked = self.ledgers / f"{self.workspace.root.name}.looked"
        looked.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "sousa_engine", "--workspace", str(self.workspace.root), *map(str, words)],
            cwd=PROJECT_ROOT,
            env=self._environment() | {"FAULTS_LOOKED": str(looked)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while not looked.exists() and process.poll() is None:
            time.sleep(0.001)
        began = time.monotonic()
        if kill:
            self.moment(1.1 * self.command_s)
            process.kill()
        said, _ = process.communicate(timeout=_PATIENCE_S)
        if not kill:
            self.command_s = time.monotonic() - began
        return said

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody has runs.db open meanwhile. Its log is there, as after a power cut: nobody moved it into the file."""
        files = [self.workspace.db, self.wal]
        found = [file.read_bytes() for file in files]
        self.store.close()
        for file, data in zip(files, found, strict=True):
            file.write_bytes(data)
        try:
            yield
        finally:
            self.store = Store.open(self.workspace)

    @property
    def wal(self) -> Path:
        return self.workspace.db.with_name("runs.db-wal")

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(INJECT), os.environ.get("PYTHONPATH")]))
        return {**os.environ, **self.env, "PYTHONPATH": path}

    # Looking and killing

    def processes(self, module: str = "", run_id: str = "") -> list[int]:
        """Living processes of this workspace that run `module`, by the folder in their command line."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            argv = process.info["cmdline"] or []  # a zombie has none
            folder = str(self.workspace.run_dir(run_id)) if run_id else str(self.workspace.root)
            ours = any(word == folder or word.startswith(f"{folder}/") for word in argv)
            if ours and (not module or ("-m" in argv and argv[argv.index("-m") + 1] == module)):
                found.append(process.pid)
        return found

    def pid(self, module: str, run_id: str = "") -> int | None:
        """Of the first such process, as soon as there is one; None if the run was over before one was seen."""
        self.wait(lambda: self.processes(module, run_id) or self.run(run_id).status.is_over, module)
        return next(iter(self.processes(module, run_id)), None)

    def kill(self, pid: int | None, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it still is a process of this workspace."""
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if pid is not None and str(self.workspace.root) in " ".join(psutil.Process(pid).cmdline()):
                os.kill(pid, number)

    def kill_everything(self) -> None:
        """In random order, until nothing of the workspace lives: what is killed first may be replaced by the next."""
        deadline = time.monotonic() + 30
        while (found := self.processes()) and time.monotonic() < deadline:
            self.random.shuffle(found)
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.supervisors:
                process.poll()
        for process in self.supervisors:
            process.wait(30)

    def moment(self, within_s: float) -> None:
        """Wait for a random moment."""
        time.sleep(self.random.random() * within_s)

    def moment_of_training(self, run_id: str) -> None:
        """Wait for a random moment, which may come too late: in every second round after the first row, else any."""
        if self.tally.rounds % 2:
            self.moment(1.1 * self.pace.train_s)
        else:
            self.first_row(run_id)
            self.moment(1.1 * self.pace.rows_s)

    def first_row(self, run_id: str) -> None:
        self.wait(lambda: self.ledger(run_id) or self.run(run_id).status.is_over, "row")

    def wait(self, condition: Callable[[], object], what: str, *, supervised: bool = True) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.workspace.root.name}: no {what} within {_PATIENCE_S:.0f} s")
            if supervised:
                self.supervise()
            time.sleep(0.02)

    def run(self, run_id: str) -> Run:
        found = self.store.runs.get(run_id)
        assert found is not None
        return found

    def over(self, run_id: str) -> Run:
        """The run once it is over; as it is, if that does not come."""
        with contextlib.suppress(TimeoutError):
            self.wait(lambda: self.run(run_id).status.is_over, "end")
        return self.run(run_id)

    # Counting

    def settle(self, run_id: str, is_true: Callable[[Run], bool]) -> Run:
        """Wait for the end of a run, count what is wrong with it, resume it to its own end where it can be resumed.

        is_true: whether the end that it was given is what happened.
        """
        run = self.over(run_id)
        self.tally.rounds += 1
        self.count(run, is_true)
        if run.status.is_over and run.status is not RunStatus.FINISHED and self._is_resumable(run_id):
            self.store.runs.resume(run_id, "Resumed by the fault suite.")
            self.tally.resumed += 1
            self.count(self.over(run_id), lambda run: run.status is RunStatus.FINISHED)
        self.tally.acknowledged += len(self.ledger(run_id))
        return run

    def count(self, run: Run, is_true: Callable[[Run], bool]) -> None:
        # Now: a trainer that was left behind ends by itself before long, and nobody would have seen it.
        outlived = self.processes(TRAINER, run.id) if run.status.is_over else []
        if not run.status.is_over:
            self._wrong("endless", run, 1, f"is {run.status.value} still; {self.log()}")
        elif not is_true(run) or (run.status is not RunStatus.FINISHED and not run.reason):
            self._wrong("untrue", run, 1, "is not what happened")
        acknowledged, rows = self.ledger(run.id), self.rows(run.id)
        expected = set(acknowledged)
        if run.status is RunStatus.FINISHED:
            expected = set(range(1, 1 + int(words_of(run.config.name)["steps"])))
        lost = [step for step in expected if rows.get(step) != loss(step)]
        self._wrong("lost", run, len(lost), f"steps {lost[:5]}")
        unmeasured = len(set(rows) - set(acknowledged))  # a kill between write and ledger leaves one per attempt
        attempts = 1 + len(run.earlier_ms) + run.attempts
        self._wrong("doubled", run, max(0, unmeasured - attempts), "rows that nobody acknowledged")
        for width, count in self.counted(run.id).items():
            self._wrong("doubled", run, abs(count - len(rows)), f"{count} in buckets of {width}, {len(rows)} rows")
        told = self._told_twice(run.id)
        self._wrong("doubled", run, len(told), f"the same line of its spool was taken again: {told[:3]}")
        found = self._left_over()
        self._wrong("orphans", run, len(found) + len(outlived), f"pids {found}, trainers {outlived}")
        newest = checkpoint.steps(self.workspace.run_dir(run.id) / resume.CHECKPOINTS)[-1:]
        if newest:
            try:
                best = checkpoint.check(newest[0])["best"]
                if best:
                    checkpoint.check(self.workspace.run_dir(run.id) / resume.BEST / best)
            except (RunError, OSError) as error:
                self._wrong("unreadable", run, 1, str(error))
        said = self._plain("PRAGMA integrity_check")
        self._wrong("databases", run, int(said != [("ok",)]), str(said))

    def count_others(self, *run_ids: str) -> None:
        """Count what is wrong with all runs but these: with those of earlier rounds."""
        for run in self.store.runs.all():
            if run.id not in run_ids:
                self.count(run, lambda run: True)

    def expect(self, what: str, condition: object, how: str) -> None:
        """Count one of `what`, unless the condition is true."""
        if not condition:
            setattr(self.tally, what, getattr(self.tally, what) + 1)
            self.tally.notes.append(f"{self.workspace.root.name}: {what}: {how}")

    def ledger(self, run_id: str) -> dict[int, int]:
        """Step -> how often it was acknowledged."""
        try:
            counts = (self.ledgers / run_id).read_bytes()
        except FileNotFoundError:
            return {}
        return {step: count for step, count in enumerate(counts) if count}

    def rows(self, run_id: str) -> dict[int, float]:
        of_run = "JOIN metric_names USING (metric_number) JOIN runs USING (run_number) WHERE id = ?"
        found = self._plain(f"SELECT step, value FROM metric_points {of_run} AND metric = 'train/loss'", run_id)
        assert len({step for step, _ in found}) == len(found)  # by its primary key
        return dict(found)

    def counted(self, run_id: str) -> dict[int, int]:
        of_run = "JOIN metric_names USING (metric_number) JOIN runs USING (run_number) WHERE id = ?"
        sql = f"SELECT width, sum(point_count) FROM metric_levels {of_run} AND metric = 'train/loss' GROUP BY width"
        return dict(self._plain(sql, run_id))

    def _told_twice(self, run_id: str) -> list[str]:
        """What a spool line told and runs.db has more than once: rows of a batch taken twice replace each other."""
        of_run = "FROM events JOIN runs USING (run_number) WHERE id = ? AND kind = 'double'"
        sql = f"SELECT message {of_run} GROUP BY at_ms, message HAVING count(*) > 1"
        return [message for (message,) in self._plain(sql, run_id)]

    def listed(self, path: Path | None = None) -> list[tuple]:
        """Runs in runs.db, or in a copy of it."""
        return self._plain("SELECT id, status, note FROM runs ORDER BY id", path=path)

    def left_of(self, run_ids: Collection[str]) -> list[object]:
        """What is still there of runs that were deleted."""
        folders = [parent / run_id for parent in (self.workspace.runs, self.workspace.trash) for run_id in run_ids]
        rows = [row for row in self.listed() if row[0] in run_ids]
        return [*filter(Path.exists, folders), *rows, *self._plain("PRAGMA foreign_key_check")]

    def log(self) -> str:
        """The last words of the supervisors."""
        return "its supervisors' last words: " + "\n".join(run_files.tail(self._log, 12))

    def _left_over(self) -> list[int]:
        """Processes beside our supervisors. A keeper that has just written the end gets a moment to leave."""
        deadline = time.monotonic() + 15
        while True:
            ours = {process.pid for process in self.supervisors}
            found = [pid for pid in self.processes() if pid not in ours]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def _is_resumable(self, run_id: str) -> bool:
        folder = self.workspace.run_dir(run_id)
        if not resume.has_checkpoints(folder):
            return False
        try:
            resume.find(folder)
        except SousaError as error:
            self._wrong("unreadable", self.run(run_id), 1, str(error))
            return False
        return True

    def _wrong(self, what: str, run: Run, count: int, how: str) -> None:
        if count:
            setattr(self.tally, what, getattr(self.tally, what) + count)
            told = f"{self.workspace.root.name} {run.id}: {what} {count}: {how} ({run.status.value}: {run.reason})"
            self.tally.notes.append(told)

    def _plain(self, sql: str, *values: object, path: Path | None = None) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(path or self.workspace.db, timeout=30)) as plain:
            return plain.execute(sql, values).fetchall()
