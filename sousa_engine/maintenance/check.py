"""Check runs.db for damage and against the run folders, and make a copy of it to keep elsewhere.

Read-only, whatever the schema: nothing is migrated, nothing is repaired. Uses SQL, as the store does.
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
from sousa_engine.store.rows import run_of
from sousa_engine.workspace import Workspace, file_systems, locks, run_files, spool

_SHOWN = 5  # of one kind; the others are counted
_LIVE = ("starting", "running", "stopping")


@dataclass(frozen=True, kw_only=True)
class Check:
    """The state of runs.db: `facts` are short lines, `findings` are sentences with a fix; none if all is well."""

    facts: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


def forgotten(workspace: Workspace) -> str:
    """A sentence with a fix if runs.db has no run, but there are run folders; else ""."""
    folders = run_folders(workspace)
    if not folders:
        return ""
    return f"runs.db has no runs, but {_there_are(folders)}. {migrations.REBUILD}"


def check(workspace: Workspace) -> Check:
    """Check everything. Raises WorkspaceError if runs.db is another program's database or of a newer version."""
    file_systems.refuse_network(workspace)
    folders = run_folders(workspace)
    if not workspace.db.is_file():
        if not folders:
            return Check(facts=(f"no runs.db and no run folder in {workspace.root}: no run was ever queued here",))
        lost = f"runs.db is missing, but {_there_are(folders)}. {migrations.REBUILD}"
        return Check(findings=(lost,))
    with reading(workspace.db) as db, migrations.explained(workspace.db):
        version = migrations.version_of(db, workspace.db)
        found = damage(db)
        if found:
            return Check(findings=(f"runs.db is damaged: {_some(found)}. {migrations.REBUILD}",))
        if not version:
            if not folders:
                return Check(facts=("runs.db is empty; it is filled with the first run",))
            return Check(findings=(f"runs.db is empty, but {_there_are(folders)}. {migrations.REBUILD}",))
        broken = [tuple(row) for row in db.execute("PRAGMA foreign_key_check")]
        unlisted = _unlisted(db) if version >= 3 else 0
        columns = "id, status, started_at_ms, spool_bytes_ingested AS taken"
        rows = {row["id"]: row for row in db.query(f"SELECT {columns} FROM runs ORDER BY run_number")}
        odd = _unreadable(db) if version >= 3 else []
    findings = [
        *([_broken_references(broken)] if broken else []),
        *(
            [f"The list of runs differs from the runs in {_count(unlisted, 'row')}. {migrations.REBUILD}"]
            * bool(unlisted)
        ),
        *([f"{_count(len(odd), 'run')} cannot be read, the others can. {' '.join(odd[:_SHOWN])}"] if odd else []),
        *_folder_findings(rows, folders),
        *_spool_findings(workspace, rows),
    ]
    newer = "" if version == migrations.LATEST else f" (upgraded to {migrations.LATEST} when the studio next opens it)"
    facts = (
        f"schema {version}{newer}",
        "SQLite integrity check: ok",
        f"{_count(len(rows), 'run')}, {_count(len(folders), 'run folder')} (a run that never started has none), "
        f"runs.db {_mib(workspace.db)}",
    )
    return Check(facts=facts, findings=tuple(findings))


def backup(workspace: Workspace, target: Path | None = None) -> Path:
    """Make a checked copy of runs.db, next to it under a dated name if no other is given. Active runs may continue.

    Raises WorkspaceError if there is nothing to copy, no room, or the database is damaged; UserError for a bad target.
    """
    file_systems.refuse_network(workspace)
    target = target or workspace.root / f"runs.backup.{time.strftime('%y%m%d-%H%M%S')}.db"
    if not workspace.db.is_file():
        raise WorkspaceError(f"There is no runs.db in {workspace.root}: nothing to copy.")
    if target.exists():
        raise UserError(f"{target} already exists, and a backup never replaces a file. Choose another name.")
    if not target.parent.is_dir():
        raise UserError(f"There is no folder {target.parent}. Create it, or choose another one.")
    with reading(workspace.db) as db:
        with migrations.explained(workspace.db):
            migrations.version_of(db, workspace.db)
        migrations.copy_into(db, target)
    return target


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy of runs.db, made by `backup` or before a migration. made_s: when, in seconds since 1970."""

    path: Path
    made_s: float
    runs: int


def copies(workspace: Workspace) -> tuple[Copy, ...]:
    """The readable copies next to runs.db, newest first, without the files that a rebuild or a restore replaced."""
    found = []
    for path in workspace.root.glob("[!.]*.db"):
        if path == workspace.db or path.name.startswith("runs.before-"):
            continue
        with contextlib.suppress(WorkspaceError, sqlite3.DatabaseError, OSError), reading(path) as db:
            if migrations.version_of(db, path):
                (runs,) = db.execute("SELECT count(*) FROM runs").fetchone()
                found.append(Copy(path=path, made_s=path.stat().st_mtime, runs=runs))
    return tuple(sorted(found, key=lambda copy: copy.made_s, reverse=True))


def damage(db: migrations.Database) -> list[str]:
    """The findings of SQLite's integrity check; none if the database is intact."""
    try:
        return [row[0] for row in db.execute("PRAGMA integrity_check(100)") if row[0] != "ok"]
    except sqlite3.DatabaseError as error:  # so damaged that even the check fails
        return [str(error)]


@contextlib.contextmanager
def sound(file: Path) -> Iterator[migrations.Database]:
    """Open a copy of a runs.db for reading, after a complete check. Raises UserError if it is not an intact copy."""
    if not file.is_file():
        raise UserError(f"There is no file {file}. Choose a copy made by db backup.")
    with contextlib.ExitStack() as stack:
        try:
            db = stack.enter_context(reading(file))
            version, program = (
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
            )
        except (WorkspaceError, sqlite3.DatabaseError):
            raise UserError(f"{file} is not a readable SQLite database. Choose another copy.") from None
        if program != migrations.APPLICATION_ID or not version:
            raise UserError(f"{file} is not a copy of a runs.db. Choose one made by db backup.")
        if version > migrations.LATEST:
            raise UserError(
                f"{file} has schema version {version}; this program supports versions up to {migrations.LATEST}. "
                "Update the program, or choose another copy."
            )
        if found := damage(db):
            raise UserError(f"{file} is damaged ({' '.join(found[0].split())}). Choose another copy.")
        if not db.table("runs").exists():
            raise UserError(f"{file} has no table of runs, so it is not a copy of a runs.db. Choose another copy.")
        yield db


def run_folders(workspace: Workspace) -> tuple[str, ...]:
    """Ids of the folders in runs/ that have a run's config, in alphabetical order, which is oldest first.

    Raises WorkspaceError if runs/ cannot be read.
    """
    try:
        found = sorted(workspace.runs.iterdir())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise WorkspaceError(
            f"{workspace.runs} cannot be read: {error.strerror}. Set SOUSA_WORKSPACE to your own folder."
        ) from None
    return tuple(place.name for place in found if _is_run(workspace, place))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[migrations.Database]:
    """Open a database read-only. Raises WorkspaceError for a file that SQLite cannot read."""
    db = migrations.connect_readonly(path)
    try:
        yield db
    finally:
        db.close()


def _is_run(workspace: Workspace, place: Path) -> bool:
    try:
        return workspace.run_dir(place.name) == place and (place / run_files.CONFIG).is_file()
    except (ValueError, OSError):
        return False


def _unreadable(db: migrations.Database) -> list[str]:
    found = (run_of(row) for row in db.query("SELECT * FROM runs ORDER BY run_number"))
    return [f"Run {run.id} ({run.status.value}): {run.unreadable}" for run in found if run.unreadable]


def _unlisted(db: migrations.Database) -> int:
    """Number of rows of `listed_runs` that its triggers should have kept up to date."""
    sql = "SELECT count(*) FROM (SELECT * FROM {} EXCEPT SELECT * FROM {})"
    there, away = ("runs_to_list", "listed_runs"), ("listed_runs", "runs_to_list")
    return max(db.execute(sql.format(*pair)).fetchone()[0] for pair in (there, away))


def _broken_references(broken: Sequence[tuple]) -> str:
    tables = sorted({row[0] for row in broken})
    rows = _count(len(broken), "row")
    return f"Run or sweep missing for {rows} of {', '.join(tables)}. {migrations.REBUILD}"


def _folder_findings(rows: dict[str, dict], folders: Sequence[str]) -> Iterator[str]:
    there = set(folders)
    missing = [run_id for run_id, row in rows.items() if row["started_at_ms"] is not None and run_id not in there]
    if missing:
        yield (
            f"{_count(len(missing), 'run')} without a folder: {_some(missing)}. Log, checkpoints and adapter are gone; "
            "restore the folder from a backup, or delete the run."
        )
    unknown = [name for name in folders if name not in rows]
    if unknown:
        yield (
            f"{_count(len(unknown), 'run folder')} not in runs.db: {_some(unknown)}. "
            "To add: close the studio, then run python -m sousa_engine db rebuild"
        )


def _spool_findings(workspace: Workspace, rows: dict[str, dict]) -> Iterator[str]:
    supervised = locks.is_held(workspace.supervisor_lock)
    ahead: dict[bool, list[str]] = {True: [], False: []}
    short = []
    for run_id, row in rows.items():
        path = workspace.run_dir(run_id) / run_files.SPOOL
        try:
            end = spool.end_of(path)
        except OSError as error:
            yield f"{path} cannot be read: {error.strerror}."
            continue
        live = row["status"] in _LIVE
        if path.exists() and end < row["taken"]:
            short.append(run_id)
        elif end > row["taken"] and not (live and supervised):
            ahead[live].append(run_id)
    if ahead[True]:
        yield (
            f"{_count(len(ahead[True]), 'run')} with metrics not yet in runs.db: {_some(ahead[True])}. "
            "Open the studio: its supervisor adds them."
        )
    if ahead[False]:
        yield (
            f"{_count(len(ahead[False]), 'ended run')} with metrics missing in runs.db: {_some(ahead[False])}. "
            f"{migrations.REBUILD}"
        )
    if short:
        yield (
            f"{_count(len(short), 'spool')} shorter than when runs.db read it: {_some(short)}. "
            "The end of the file is lost, but runs.db has all its metrics."
        )


def _there_are(folders: Sequence[str]) -> str:
    verb = "is" if len(folders) == 1 else "are"
    return f"there {verb} {_count(len(folders), 'run folder')} ({_some(folders)})"


def _some(names: Sequence[object]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _mib(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:,.1f} MiB"
