"""Rebuild runs.db from the run folders: `python -m sousa_engine db rebuild`.

Files are the truth: metrics, facts, predictions and how a run ended are read from its folder. Data that is in no
file (tags, notes, sweeps, saved target sets, the creator of a run) comes from the old runs.db as far as it can be read,
and is reported as lost otherwise. The old file is kept next to the new one and replaced in one step: if interrupted,
either the old one or the new one is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sousa_engine.core import config
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, WorkspaceError
from sousa_engine.core.records import MOST_MS, Event, Prediction, Run, RunStatus
from sousa_engine.maintenance import check
from sousa_engine.maintenance.salvage import New, Old, database_files
from sousa_engine.runs import ending
from sousa_engine.runs.executors import Sighting
from sousa_engine.runs.executors.local import LocalExecutor
from sousa_engine.store import migrations, trash
from sousa_engine.store.rows import facts_of
from sousa_engine.workspace import Workspace, file_systems, locks, run_files, spool
from sousa_engine.workspace.spool import SpoolBatch

_END_BYTES = 65536
_IN_NO_FOLDER = (
    "tags, notes, names given later, archive marks, its creator and exact time of creation, the requested device, "
    "its sweep, the run that it was cloned from"
)


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """The result.

    runs: in the new database; from_files: of these, ids of those made only from their folder; without_folder: of these,
    those known only to the old database. lost, left_out: sentences. kept: the old file, None if there was none.
    """

    runs: int
    from_files: tuple[str, ...]
    without_folder: int
    lost: tuple[str, ...]
    left_out: tuple[str, ...]
    kept: Path | None


def rebuild(workspace: Workspace) -> Rebuilt:
    """Raises WorkspaceError if a supervisor or a run is active, another process writes to runs.db, the disk is full, or
    runs.db is of a newer version."""
    file_systems.refuse_network(workspace)
    with alone(workspace), Old.open(workspace.db) as old:
        if not old.is_readable:
            trash.put_back(workspace, trash.found(workspace))  # the state of a deletion was in runs.db
        new_file = workspace.root / ".runs.rebuilt.db"
        try:
            with New(new_file, workspace) as new:
                made = _fill(workspace, old, new)
                new.finish()
                if old.was_changed():
                    raise WorkspaceError(
                        "Another process wrote to runs.db during the rebuild, and the new one would lack it. "
                        "runs.db is unchanged. Close the studio, then try again."
                    )
            return replace(made, kept=put_in_place(new_file, workspace.db, "rebuild"))
        except OSError as error:
            raise WorkspaceError(f"runs.db is unchanged: {error.filename}: {error.strerror}.") from error


def behind(workspace: Workspace, rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Ids of the runs whose folder has a later attempt than these rows of `runs`, or that are not among them."""
    known = {row["id"]: row for row in rows}
    folders = (_Folder.read(workspace, name) for name in check.run_folders(workspace))
    return tuple(one.id for one in folders if one.id not in known or one.is_newer_than(known[one.id]))


@contextlib.contextmanager
def alone(workspace: Workspace) -> Iterator[None]:
    """Ensure that nothing supervises, trains, deletes or migrates, and that nothing can start to inside the block."""
    if not workspace.runs.is_dir():
        raise WorkspaceError(f"There is no folder {workspace.runs}: nothing to rebuild runs.db from.")
    try:
        lock = locks.take(workspace.supervisor_lock)
    except OSError as error:
        raise WorkspaceError(f"{workspace.supervisor_lock} cannot be written to: {error.strerror}.") from None
    if lock is None:
        pid = locks.signed_by(workspace.supervisor_lock)
        stop = "end its process" if pid is None else f"kill {pid}"
        raise WorkspaceError(
            f"A supervisor is running in {workspace.root} and would write to runs.db. Close the studio; the supervisor "
            f"exits a minute after the last run. To end it now: {stop}"
        )
    try:
        locks.sign(lock)
        training = [name for name in check.run_folders(workspace) if _trains(workspace.run_dir(name))]
        if training:
            keepers = [run_files.read_keeper(workspace.run_dir(name) / run_files.KEEPER) for name in training]
            pids = " ".join(str(note["pid"]) for note in keepers if note)
            raise WorkspaceError(
                f"Still training: {', '.join(training[:5])}. Wait for the end, or save and stop "
                f"{'it' if len(training) == 1 else 'them'}: kill {pids}".rstrip()
            )
        with migrations.alone(workspace), trash.alone(workspace, wait=True):
            yield
    finally:
        os.close(lock)


def _trains(folder: Path) -> bool:
    return locks.is_held(folder / run_files.KEEPER_LOCK)


def _fill(workspace: Workspace, old: Old, new: New) -> Rebuilt:
    new.take_over(old)
    rows = {row["id"]: row for row in old.rows("runs")}
    folders = {name: _Folder.read(workspace, name) for name in check.run_folders(workspace)}
    for name in folders.keys() - rows.keys():
        if found := old.run(name):
            rows[name] = found
    from_files: list[str] = []
    left_out: list[str] = []
    lost: list[str] = []
    without_folder = 0
    for row in sorted(rows.values(), key=lambda row: row["run_number"]):
        folder = folders.get(row["id"])
        sweep = row.get("sweep_id")
        if sweep is not None and not new.has_sweep(sweep):
            lost.append(f"Run {row['id']} belonged to sweep {sweep}, which could not be read.")
            row = {**row, "sweep_id": None}
        if folder and folder.is_newer_than(row):
            row = {**row, **folder.end()}
        if not new.add_run({**row, "spool_bytes_ingested": 0}):
            if folder is None:
                lost.append(f"Run {row['id']} has no folder, and its row could not be read completely.")
            continue
        without_folder += folder is None
        lost += _take_in(old, new, row, folder)
        folders.pop(row["id"], None)
    for folder in sorted((f for f in folders.values() if f), key=lambda folder: (folder.created_at_ms, folder.id)):
        if folder.trouble:
            left_out.append(f"{folder.path}: {folder.trouble}")
        elif new.add_run(folder.row()):
            lost += _take_in(old, new, None, folder)
            from_files.append(folder.id)
        else:
            left_out.append(f"{folder.path}: its files do not describe a valid run")
    if from_files:
        lost.insert(0, f"For {len(from_files)} run(s), all that is not in their folders: {_IN_NO_FOLDER}.")
        if not old.damaged:
            lost.insert(
                0,
                "All that is in no run folder and not in the runs.db found here: "
                "sweeps, saved target sets and runs that never started.",
            )
    if old.damaged:
        what = "Part of the old runs.db" if old.is_readable else "The old runs.db"
        lost.insert(0, f"{what} could not be read. It held sweeps, saved target sets and runs that never started.")
    return Rebuilt(
        runs=new.run_count(),
        from_files=tuple(from_files),
        without_folder=without_folder,
        lost=tuple(lost),
        left_out=tuple(left_out),
        kept=None,
    )


def _take_in(old: Old, new: New, row: Mapping[str, Any] | None, folder: _Folder | None) -> Iterator[str]:
    """Add points, facts, progress, events and predictions of a run that has its row. Yields what was lost."""
    run_id = row["id"] if row else folder.id if folder else ""
    recorded = old.events(row["run_number"]) if row else []
    if row and folder and folder.trouble:
        yield f"What the folder of run {run_id} holds: {folder.trouble}."
    if folder and not folder.trouble and folder.spool.exists():
        events, offset = [], 0
        was_cut = row is not None and spool.end_of(folder.spool) < row["spool_bytes_ingested"]
        while not (batch := spool.read_batch(folder.spool, offset)).is_empty:
            new.ingest(run_id, replace(batch, progress=None, facts=None) if was_cut else batch)
            events += batch.events
            offset = batch.end
        if row and was_cut:  # the old file ingested all of it: its points are newer
            new.ingest(run_id, SpoolBatch(start=offset, end=offset, points=old.points(row["run_number"])))
        new.add_events(run_id, recorded, events) if recorded else new.add_events(run_id, folder.story(events))
    elif row:
        new.ingest(run_id, SpoolBatch(start=0, end=row["spool_bytes_ingested"], points=old.points(row["run_number"])))
        new.add_events(run_id, recorded)
    predictions: tuple[Prediction, ...] | list[Prediction] = ()
    if folder:
        try:
            predictions = spool.read_predictions(folder.path / run_files.PREDICTIONS)
        except (ValueError, OSError) as error:
            yield f"Predictions of run {run_id}: {error}"
    if not predictions and row:
        predictions = old.predictions(row["run_number"])
    if predictions:
        new.save_predictions(run_id, predictions)


@dataclass(frozen=True, kw_only=True)
class _Folder:
    """A run as described by its folder. trouble: why it cannot be read; then all else is meaningless."""

    id: str
    path: Path
    config: RunConfig
    keeper: Mapping[str, Any] | None
    exit: Mapping[str, Any] | None
    sighting: Sighting
    first_ms: int | None  # of the spool
    last_ms: int | None
    trouble: str = ""

    @classmethod
    def read(cls, workspace: Workspace, run_id: str) -> _Folder:
        path = workspace.run_dir(run_id)
        trouble, found = "", config.build({})
        sighting, first_ms, last_ms = Sighting(is_alive=False), None, None
        keeper, exit_note, result = None, None, None
        try:
            said = run_files.read_json(path / run_files.CONFIG)
            if said is None:
                trouble = f"{run_files.CONFIG} is not JSON"
            found = config.build(said or {})
            keeper = run_files.read_keeper(path / run_files.KEEPER)
            exit_note = run_files.read_exit(path / run_files.EXIT)
            nonce = (exit_note or keeper or {}).get("nonce", "")
            first_ms, last_ms = _span(path / run_files.SPOOL)
            run = Run(id=run_id, config=found, status=RunStatus.LOST, created_at_ms=0)
            sighting = LocalExecutor(workspace).poll(run, nonce)
            result = sighting.result or run_files.read_result(path / run_files.RESULT)
            run_files.tail(path / run_files.LOG, 1)
        except ConfigError as error:
            trouble = f"{run_files.CONFIG} is invalid: {error}"
        except OSError as error:
            trouble = f"{Path(error.filename or path).name} cannot be read: {error.strerror}"
        return cls(
            id=run_id,
            path=path,
            config=found,
            keeper=keeper,
            exit=exit_note,
            sighting=replace(sighting, is_alive=False, result=result),
            first_ms=first_ms,
            last_ms=last_ms,
            trouble=trouble,
        )

    @property
    def spool(self) -> Path:
        return self.path / run_files.SPOOL

    @property
    def nonce(self) -> str | None:
        return (self.exit or self.keeper or {}).get("nonce")

    @property
    def started_at_ms(self) -> int | None:
        return self.sighting.started_at_ms or self.first_ms

    @property
    def ended_at_ms(self) -> int:
        if self.exit:
            return self.exit["ended_ms"]
        return self.last_ms or self.started_at_ms or _modified_ms(self.path / run_files.CONFIG)

    @property
    def created_at_ms(self) -> int:
        """The time in its id, a local time in seconds; at the latest its start, whatever the time zone was."""
        latest = self.started_at_ms or self.ended_at_ms
        try:
            said = 1000 * int(time.mktime(time.strptime(self.id[:13], "%y%m%d-%H%M%S")))
        except (ValueError, OverflowError):
            return latest
        return min(said, latest)

    def is_newer_than(self, row: Mapping[str, Any]) -> bool:
        """Whether it has a later attempt than the row, which may be from a backup.

        The row of an active run does not change: the next supervisor finds out how it ended, as after any crash.
        """
        if self.trouble or self.nonce is None or self.nonce == row["launch_nonce"]:
            return False
        moments = [row[moment] or 0 for moment in ("created_at_ms", "claimed_at_ms", "started_at_ms", "ended_at_ms")]
        # The row of a run that was resumed and is queued keeps its earlier attempts.
        earlier = [end for _, end in facts_of(row.get("facts_json") or "{}").get("earlier", ())]
        return self.ended_at_ms > max(moments + earlier)

    def end(self) -> dict[str, Any]:
        """The columns that describe its attempt."""
        steps = list((self.exit or {}).get("steps", ()))
        stop = next((step["at_ms"] for step in steps if step["step"] == "SIGTERM"), None)
        seen = RunStatus.STOPPING if stop else RunStatus.RUNNING
        run = Run(id=self.id, config=self.config, status=seen, created_at_ms=self.created_at_ms)
        last_line = (run_files.tail(self.path / run_files.LOG, 1) or [""])[-1]
        status, reason = ending.read(run, self.sighting, last_log_line=last_line)
        slot = self.config.device if self.config.device != "auto" else "cpu"
        return {
            "status": status.value,
            "reason": reason,
            "slot": slot,
            "launch_nonce": self.nonce,
            "started_at_ms": self.started_at_ms,
            "stop_requested_at_ms": stop,
            "ended_at_ms": self.ended_at_ms,
        }

    def row(self) -> dict[str, Any]:
        """All columns that a folder alone can give."""
        return {
            "id": self.id,
            "name": self.config.name,
            "wanted_device": self.config.device,
            "queue_position": 0,  # it is not queued
            "launches": 1,
            "created_by": "rebuild",
            "created_at_ms": self.created_at_ms,
            "config_json": self.config.model_dump_json(),
            **self.end(),
        }

    def story(self, of_the_spool: list[Event]) -> list[Event]:
        """Events from the files, as the store would have them."""
        end = self.end()
        found = [
            Event(at_ms=self.created_at_ms, kind="rebuilt", message="Restored from its folder: runs.db had lost it.")
        ]
        if self.sighting.started_at_ms:
            seen = "The trainer has started."
            found.append(Event(at_ms=self.sighting.started_at_ms, kind="started", message=seen))
        found += of_the_spool
        for step in (self.exit or {}).get("steps", ()):
            found.append(Event(at_ms=step["at_ms"], kind="keeper", message=f"Trainer: {step['step']}."))
        message = end["reason"] or "The trainer finished."
        return [*found, Event(at_ms=end["ended_at_ms"], kind=end["status"], message=message)]


def _span(path: Path) -> tuple[int | None, int | None]:
    """When the first and the last line of a spool were written, in ms since 1970."""
    first = _moments(spool.read_spool(path, 0, _END_BYTES)[0])
    last = _moments(spool.read_spool(path, max(0, spool.end_of(path) - _END_BYTES), _END_BYTES)[0])
    return (first or [None])[0], (last or [None])[-1]


def _moments(entries: Iterable[Mapping[str, Any]]) -> list[int]:
    said = (entry.get("t") for entry in entries)
    return [at_ms for at_ms in said if isinstance(at_ms, int) and abs(at_ms) <= MOST_MS]


def _modified_ms(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000


def put_in_place(new: Path, path: Path, what: str) -> Path | None:
    """Keep the old file under a dated name, then rename the new one over it. Returns the dated file, None if there was
    no old one. The old log is removed first: SQLite would replay it into the new file. The old file has it by then.

    what: "rebuild" or "restore", for the dated name.
    """
    with new.open("rb") as file:
        os.fsync(file.fileno())
    kept = None
    migrations.take_in_log(path)
    if any(old.exists() for old in database_files(path)[:2]):
        stamp, more = time.strftime("%y%m%d-%H%M%S"), ""
        while (kept := path.with_name(f"runs.before-{what}.{stamp}{more}.db")).exists():
            more = f"-{1 + int(more[1:] or 0)}"
        for old, name in zip(database_files(path)[:2], database_files(kept)[:2], strict=True):
            if old.exists():
                _keep(old, name)
        run_files.sync_folder(path.parent)
    for log in database_files(path)[1:]:
        log.unlink(missing_ok=True)
    new.replace(path)
    run_files.sync_folder(path.parent)
    return kept


def _keep(old: Path, name: Path) -> None:
    try:
        name.hardlink_to(old)
    except OSError:  # a disk without hard links
        shutil.copy2(old, name)
