"""Looking after runs.db: is it whole, does it agree with the runs' folders, and a copy of it to keep elsewhere.

Reads alone, whatever the schema: nothing is migrated, nothing is repaired. Speaks SQL, as store.py does.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.store import migrations
from sousa_engine.workspace import Workspace, file_systems, locks, run_files, spool

_SHOWN = 5  # of one kind; the others are counted
_LIVE = ("starting", "running", "stopping")


@dataclass(frozen=True, kw_only=True)
class Check:
    """What runs.db is: `facts` in short lines, and `findings`, each a sentence with its cure; none if all is well."""

    facts: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def forgotten(workspace: Workspace) -> str:
    """What to say where runs.db knows no run: "" if there is none either, else a sentence with its cure."""
    folders = run_folders(workspace)
    if not folders:
        return ""
    return f"runs.db knows no run, but {_count(len(folders), 'run folder')} ({_some(folders)}). {migrations.REBUILD}"


def check(workspace: Workspace) -> Check:
    """Look at everything. Raises WorkspaceError for a file that is no database of ours, or of a newer program."""
    file_systems.refuse_network(workspace)
    folders = run_folders(workspace)
    if not workspace.db.is_file():
        if not folders:
            return Check(facts=(f"no runs.db in {workspace.root}, and no run's folder: nothing was ever queued here",))
        lost = f"There is no runs.db, but {_count(len(folders), 'run folder')} ({_some(folders)}). {migrations.REBUILD}"
        return Check(findings=(lost,))
    with reading(workspace.db) as db, migrations._sentences(workspace.db):
        version = migrations._version(db, workspace.db)
        found = damage(db)
        if found:
            return Check(findings=(f"runs.db is damaged: {_some(found)}. {migrations.REBUILD}",))
        if not version:
            if not folders:
                return Check(facts=("runs.db is empty; it is made with the first run",))
            return Check(
                findings=(f"runs.db is empty, but {_count(len(folders), 'run folder')}. {migrations.REBUILD}",)
            )
        broken = [tuple(row) for row in db.execute("PRAGMA foreign_key_check")]
        unlisted = _unlisted(db) if version >= 3 else 0
        columns = "id, status, started_at_ms, spool_bytes_ingested AS taken"
        rows = {row["id"]: row for row in db.query(f"SELECT {columns} FROM runs ORDER BY run_number")}
    findings = [
        *([_broken_references(broken)] if broken else []),
        *(
            [f"The list of runs differs from the runs in {_count(unlisted, 'line')}. {migrations.REBUILD}"]
            * bool(unlisted)
        ),
        *_folder_findings(rows, folders),
        *_spool_findings(workspace, rows),
    ]
    newer = "" if version == migrations._LATEST else f", brought to {migrations._LATEST} when the studio opens it next"
    facts = (
        f"schema {version}{newer}",
        "SQLite's integrity check: ok",
        f"{_count(len(rows), 'run')}, {_count(len(folders), 'run folder')} (a run that never started has none), "
        f"runs.db {_mib(workspace.db)}",
    )
    return Check(facts=facts, findings=tuple(findings))


def backup(workspace: Workspace, target: Path | None = None) -> Path:
    """A checked copy of runs.db, beside it under a dated name if no other is given. Trainings may go on meanwhile.

    Raises WorkspaceError: nothing there to copy, a file of that name exists, no room, a damaged database.
    """
    file_systems.refuse_network(workspace)
    target = target or workspace.root / f"runs.backup.{time.strftime('%y%m%d-%H%M%S')}.db"
    if not workspace.db.is_file():
        raise WorkspaceError(f"There is no runs.db in {workspace.root}: nothing to copy.")
    if target.exists():
        raise UserError(f"{target} exists already: a backup never replaces a file. Choose another name.")
    if not target.parent.is_dir():
        raise UserError(f"There is no folder {target.parent}: make it first, or name another place.")
    with reading(workspace.db) as db:
        with migrations._sentences(workspace.db):
            migrations._version(db, workspace.db)
        migrations.copy_into(db, target)
    return target


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy of runs.db: by `backup`, or from before a migration. made_s: when, in seconds since 1970."""

    path: Path
    made_s: float
    runs: int


def copies(workspace: Workspace) -> tuple[Copy, ...]:
    """Those beside runs.db that can be read, newest first; what a rebuild or a restore replaced is none."""
    found = []
    for path in workspace.root.glob("[!.]*.db"):
        if path == workspace.db or path.name.startswith("runs.before-"):
            continue
        with contextlib.suppress(WorkspaceError, sqlite3.DatabaseError, OSError), reading(path) as db:
            if migrations._version(db, path):
                (runs,) = db.execute("SELECT count(*) FROM runs").fetchone()
                found.append(Copy(path=path, made_s=path.stat().st_mtime, runs=runs))
    return tuple(sorted(found, key=lambda copy: copy.made_s, reverse=True))


def damage(db: migrations.Database) -> list[str]:
    """What SQLite's integrity check says; nothing if all is whole."""
    try:
        return [row[0] for row in db.execute("PRAGMA integrity_check(100)") if row[0] != "ok"]
    except sqlite3.DatabaseError as error:  # so damaged that even the check cannot go on
        return [str(error)]


@contextlib.contextmanager
def sound(file: Path) -> Iterator[migrations.Database]:
    """A copy of some runs.db, open for reading, once all of it was checked. Raises UserError for what is none."""
    if not file.is_file():
        raise UserError(f"There is no file {file}. Name a copy that db backup made.")
    with contextlib.ExitStack() as stack:
        try:
            db = stack.enter_context(reading(file))
            version, program = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
            )
        except (WorkspaceError, sqlite3.DatabaseError):
            raise UserError(f"{file} is not a readable SQLite database. Name another copy.") from None
        if program != migrations.APPLICATION_ID or not version:
            raise UserError(f"{file} is no copy of a runs.db. Name one that db backup made.")
        if version > migrations._LATEST:
            raise UserError(
                f"{file} has schema version {version}; this program knows versions up to {migrations._LATEST}. "
                "Update the program, or name another copy."
            )
        if found := damage(db):
            raise UserError(f"{file} is damaged ({' '.join(found[0].split())}). Name another copy.")
        if not db.table("runs").exists():
            raise UserError(f"{file} has no table of runs, so it is no copy of a runs.db. Name another copy.")
        yield db


def run_folders(workspace: Workspace) -> tuple[str, ...]:
    """Ids of the folders in runs/ that hold a run's config, in alphabetical order, which is that of their age.

    Raises WorkspaceError where runs/ cannot be looked into.
    """
    try:
        found = sorted(workspace.runs.iterdir())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise WorkspaceError(
            f"{workspace.runs} cannot be looked into: {error.strerror}. Set SOUSA_WORKSPACE to a folder of your own."
        ) from None
    return tuple(place.name for place in found if _is_run(workspace, place))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[migrations.Database]:
    """Raises WorkspaceError for a file that SQLite cannot read."""
    db = migrations._connect_readonly(path)
    try:
        yield db
    finally:
        db.close()


def _is_run(workspace: Workspace, place: Path) -> bool:
    try:
        return workspace.run_dir(place.name) == place and (place / run_files.CONFIG).is_file()
    except (ValueError, OSError):
        return False


def _unlisted(db: migrations.Database) -> int:
    """Lines of `listed_runs` that triggers should have kept otherwise."""
    sql = "SELECT count(*) FROM (SELECT * FROM {} EXCEPT SELECT * FROM {})"
    there, away = ("runs_to_list", "listed_runs"), ("listed_runs", "runs_to_list")
    return max(db.execute(sql.format(*pair)).fetchone()[0] for pair in (there, away))


def _broken_references(broken: Sequence[tuple]) -> str:
    tables = sorted({row[0] for row in broken})
    lines = _count(len(broken), "line")
    return f"{lines} of {', '.join(tables)} belong to a run or a sweep that is not there. {migrations.REBUILD}"


def _folder_findings(rows: dict[str, dict], folders: Sequence[str]) -> Iterator[str]:
    there = set(folders)
    missing = [run_id for run_id, row in rows.items() if row["started_at_ms"] is not None and run_id not in there]
    if missing:
        yield (
            f"{_count(len(missing), 'run')} without a folder: {_some(missing)}. Log, checkpoints and adapter are gone; "
            "put the folder back from a backup, or delete the run."
        )
    unknown = [name for name in folders if name not in rows]
    if unknown:
        yield (
            f"{_count(len(unknown), 'run folder')} that runs.db does not know: {_some(unknown)}. "
            "To take them in: close the studio, then python -m sousa_engine db rebuild"
        )


def _spool_findings(workspace: Workspace, rows: dict[str, dict]) -> Iterator[str]:
    supervised = locks.is_held(workspace.supervisor_lock)
    ahead: dict[bool, list[str]] = {True: [], False: []}
    short = []
    for run_id, row in rows.items():
        path = workspace.run_dir(run_id) / run_files.SPOOL
        try:
            size = path.stat().st_size
        except OSError:
            continue
        live = row["status"] in _LIVE
        if size < row["taken"]:
            short.append(run_id)
        elif (
            size > row["taken"] and not (live and supervised) and spool.read_spool(path, row["taken"])[1] > row["taken"]
        ):
            ahead[live].append(run_id)  # whole lines, not one torn at its end
    if ahead[True]:
        yield (
            f"{_count(len(ahead[True]), 'run')} measured more than runs.db has: {_some(ahead[True])}. "
            "Open the studio: its supervisor takes it in."
        )
    if ahead[False]:
        yield (
            f"{_count(len(ahead[False]), 'run')} that is over measured more than runs.db has: {_some(ahead[False])}. "
            f"{migrations.REBUILD}"
        )
    if short:
        yield (
            f"{_count(len(short), 'spool')} shorter than what runs.db took from it: {_some(short)}. "
            "The file was cut; what runs.db has is whole."
        )


def _some(names: Sequence[object]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _mib(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:,.1f} MiB"
