"""The history of the schema, and opening runs.db: creates it, upgrades it under a lock, refuses other databases.

Names of tables and columns are self-explanatory, for use with Datasette or a SQL prompt: start at `runs_overview`.
Never edit a released migration; append a new one. `PRAGMA user_version` counts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.workspace import Workspace, file_systems
from sousa_engine.workspace.locks import private
from sousa_engine.workspace.run_files import sync_folder


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Hide packages from an import. sqlite-utils imports pandas and numpy for their types: 0.8 s and 60 MiB a process.

    We pass it neither, so the supervisor and the commands save that. Does nothing while other threads run, as they
    may import the same packages.
    """
    hidden = [name for name in packages if name not in sys.modules] if threading.active_count() == 1 else []
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _without("pandas", "numpy"):
    from sqlite_utils import Database, Migrations

APPLICATION_ID = 0x534F5553  # "SOUS"
BUSY_TIMEOUT_S = 30.0
REBUILD = "Close the studio, then rebuild it from the run folders: python -m sousa_engine db rebuild"
COPIES_KEPT = 3  # copies of the database from before a migration
LATEST = 6

history = Migrations("sousa_engine")


@history(name="0001_runs_metrics_predictions")
def _first(db: Database) -> None:
    db.executescript(
        """
        CREATE TABLE runs (
            run_number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('queued', 'starting', 'running', 'stopping',
                                                   'finished', 'failed', 'stopped', 'lost')),
            wanted_device TEXT NOT NULL,          -- auto, cpu, mps, cuda:0
            slot TEXT,                            -- the device it was given
            queue_position INTEGER NOT NULL,      -- lowest first
            launches INTEGER NOT NULL DEFAULT 0,
            launch_nonce TEXT,                    -- names one launch, in the run's files too
            created_by TEXT NOT NULL,             -- page or cli
            created_at_ms INTEGER NOT NULL,
            claimed_at_ms INTEGER,
            started_at_ms INTEGER,
            stop_requested_at_ms INTEGER,
            ended_at_ms INTEGER,
            reason TEXT,
            weights_label TEXT,
            spool_bytes_ingested INTEGER NOT NULL DEFAULT 0,
            config_json TEXT NOT NULL CHECK (json_valid(config_json)),
            progress_json TEXT CHECK (progress_json IS NULL OR json_valid(progress_json)),
            facts_json TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(facts_json)),
            CHECK (slot IS NOT NULL OR status IN ('queued', 'stopped', 'failed')),
            CHECK ((ended_at_ms IS NOT NULL) = (status IN ('finished', 'failed', 'stopped', 'lost')))
        );
        CREATE UNIQUE INDEX one_live_run_per_slot ON runs (slot) WHERE status IN ('starting', 'running', 'stopping');
        CREATE INDEX runs_waiting ON runs (wanted_device, queue_position, run_number) WHERE status = 'queued';
        CREATE INDEX runs_by_age ON runs (created_at_ms, run_number);

        CREATE TABLE metric_names (
            metric_number INTEGER PRIMARY KEY,
            metric TEXT NOT NULL UNIQUE,          -- train/loss, valid/accuracy, ...
            better TEXT NOT NULL CHECK (better IN ('lower', 'higher'))
        );
        -- value is NULL where the metric was not finite; not_finite says which: nan, inf or -inf
        CREATE TABLE metric_points (
            run_number INTEGER NOT NULL REFERENCES runs (run_number) ON DELETE CASCADE,
            metric_number INTEGER NOT NULL REFERENCES metric_names (metric_number),
            step INTEGER NOT NULL,
            value REAL,
            not_finite TEXT,
            epoch INTEGER,
            clip_count INTEGER,                   -- clips it was computed on, where that is known
            at_ms INTEGER NOT NULL,
            PRIMARY KEY (run_number, metric_number, step)
        ) WITHOUT ROWID;
        -- metric_points in buckets of `width` steps: bucket b holds the steps from b * width on. For fast curves
        CREATE TABLE metric_levels (
            run_number INTEGER NOT NULL REFERENCES runs (run_number) ON DELETE CASCADE,
            metric_number INTEGER NOT NULL REFERENCES metric_names (metric_number),
            width INTEGER NOT NULL,
            bucket INTEGER NOT NULL,
            first_step INTEGER NOT NULL,
            point_count INTEGER NOT NULL,
            finite_count INTEGER NOT NULL,
            value_sum REAL,
            value_min REAL,
            value_max REAL,
            PRIMARY KEY (run_number, metric_number, width, bucket)
        ) WITHOUT ROWID;
        CREATE TABLE metric_summaries (
            run_number INTEGER NOT NULL REFERENCES runs (run_number) ON DELETE CASCADE,
            metric_number INTEGER NOT NULL REFERENCES metric_names (metric_number),
            last_value REAL,
            last_step INTEGER NOT NULL,
            last_epoch INTEGER,
            last_clip_count INTEGER,
            best_value REAL,
            best_step INTEGER,
            first_not_finite_step INTEGER,
            PRIMARY KEY (run_number, metric_number)
        ) WITHOUT ROWID;
        """
    )
    db.table("events").create(
        {"event_number": int, "run_number": int, "at_ms": int, "kind": str, "message": str},
        pk="event_number",
        not_null={"run_number", "at_ms", "kind", "message"},
        foreign_keys=[("run_number", "runs", "run_number")],
    ).create_index(["run_number"])
    db.table("predictions").create(
        {
            "run_number": int,
            "split": str,
            "clip_id": str,
            "label": str,
            "predicted": str,
            "probability": float,
            "label_probability": float,
        },
        pk=("run_number", "split", "clip_id"),
        not_null={"label", "predicted"},
        foreign_keys=[("run_number", "runs", "run_number")],
    )
    db.table("target_sets").create(
        {"name": str, "variant": str, "paths_json": str, "head": str, "saved_at_ms": int},
        pk=("name", "variant"),
        not_null={"paths_json", "head", "saved_at_ms"},
    )
    db.create_view("runs_overview", _OVERVIEW)


@history(name="0002_sweeps")
def _sweeps(db: Database) -> None:
    db.executescript(
        """
        CREATE TABLE sweeps (
            id TEXT NOT NULL PRIMARY KEY,
            name TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('running', 'paused', 'finished', 'stopped', 'failed')),
            spec_json TEXT NOT NULL CHECK (json_valid(spec_json)),
            created_by TEXT NOT NULL,             -- page or cli
            created_at_ms INTEGER NOT NULL,
            ended_at_ms INTEGER,
            reason TEXT
        ) WITHOUT ROWID;
        ALTER TABLE runs ADD COLUMN sweep_id TEXT REFERENCES sweeps (id);
        ALTER TABLE runs ADD COLUMN trial_number INTEGER;     -- of its sweep, from 0: one setting, several seeds
        ALTER TABLE runs ADD COLUMN setting_json TEXT;        -- what its sweep set: field -> value
        ALTER TABLE runs ADD COLUMN pruned_at_step INTEGER;   -- its sweep gave it up at this step
        CREATE INDEX runs_of_sweeps ON runs (sweep_id, trial_number) WHERE sweep_id IS NOT NULL;
        """
    )


@history(name="0003_tags_notes_archive")
def _kept(db: Database) -> None:
    db.executescript(
        """
        ALTER TABLE runs ADD COLUMN tags_json TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(tags_json));
        ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT '';
        ALTER TABLE runs ADD COLUMN archived_at_ms INTEGER;   -- NULL: shown in lists

        -- What lists show, sort and search, without the configs: narrow, so that 10,000 runs are read in milliseconds.
        -- Triggers on runs keep it.
        CREATE TABLE listed_runs (
            run_number INTEGER PRIMARY KEY REFERENCES runs (run_number) ON DELETE CASCADE,
            id TEXT NOT NULL UNIQUE,
            title TEXT NOT NULL,
            status TEXT NOT NULL,
            device TEXT NOT NULL,
            backbone TEXT NOT NULL,
            weights TEXT NOT NULL,
            dataset TEXT NOT NULL,
            method TEXT NOT NULL,
            target_set TEXT NOT NULL,
            target_modules INTEGER NOT NULL,
            seed INTEGER NOT NULL,
            trainable_parameters INTEGER,
            sweep_id TEXT,
            created_at_ms INTEGER NOT NULL,
            started_at_ms INTEGER,
            ended_at_ms INTEGER,
            archived_at_ms INTEGER,
            tags_json TEXT NOT NULL,
            note TEXT NOT NULL
        );
        CREATE VIEW runs_to_list AS
        SELECT run_number, id,
               iif(name != '', name, backbone || ' · ' || dataset || ' · seed ' || seed) AS title,
               status, device, backbone, weights, dataset, method, target_set, target_modules, seed,
               trainable_parameters, sweep_id, created_at_ms, started_at_ms, ended_at_ms, archived_at_ms,
               tags_json, note
        FROM (
            SELECT *,
                   coalesce(slot, wanted_device) AS device,
                   json_extract(config_json, '$.model.variant') AS backbone,
                   json_extract(config_json, '$.model.weights') AS weights,
                   substr(path, 1 + length(rtrim(path, replace(replace(path, '/', ''), '\\', '')))) AS dataset,
                   coalesce(json_extract(config_json, '$.lora.method'), 'lora') AS method,
                   coalesce(json_extract(config_json, '$.lora.target_set'), '') AS target_set,
                   coalesce(json_array_length(config_json, '$.lora.targets'), 0) AS target_modules,
                   json_extract(config_json, '$.seed') AS seed,
                   json_extract(facts_json, '$.parameters.trainable') AS trainable_parameters
            FROM (SELECT *, rtrim(json_extract(config_json, '$.data.dataset'), '/\\') AS path FROM runs)
        );
        INSERT INTO listed_runs SELECT * FROM runs_to_list;
        CREATE TRIGGER list_a_new_run AFTER INSERT ON runs BEGIN
            INSERT INTO listed_runs SELECT * FROM runs_to_list WHERE run_number = new.run_number;
        END;
        CREATE TRIGGER list_a_changed_run
        AFTER UPDATE OF name, status, slot, config_json, sweep_id, started_at_ms, ended_at_ms, archived_at_ms,
                        tags_json, note ON runs BEGIN
            REPLACE INTO listed_runs SELECT * FROM runs_to_list WHERE run_number = new.run_number;
        END;
        CREATE TRIGGER list_new_facts AFTER UPDATE OF facts_json ON runs
        WHEN new.facts_json IS NOT old.facts_json BEGIN     -- every ingest writes them, few change them
            REPLACE INTO listed_runs SELECT * FROM runs_to_list WHERE run_number = new.run_number;
        END;
        """
    )
    more = """r.reason,
    r.tags_json AS tags,
    r.note,
    strftime('%Y-%m-%d %H:%M:%SZ', r.archived_at_ms / 1000, 'unixepoch') AS archived_at"""
    db.create_view("runs_overview", _OVERVIEW.replace("r.reason", more), replace=True)


@history(name="0004_queue")
def _queue(db: Database) -> None:
    db.executescript(
        """
        CREATE TABLE queue (
            the_only_row INTEGER PRIMARY KEY CHECK (the_only_row = 1),
            paused_at_ms INTEGER,                             -- NULL: runs are claimed
            cpu_slots INTEGER NOT NULL DEFAULT 1 CHECK (cpu_slots >= 1)     -- runs that may share the CPU
        );
        INSERT INTO queue (the_only_row) VALUES (1);

        ALTER TABLE runs ADD COLUMN kill_requested_at_ms INTEGER;     -- stop now: without a checkpoint
        ALTER TABLE runs ADD COLUMN form_token TEXT;          -- of the submitted form: sent again, it adds no run
        CREATE UNIQUE INDEX one_run_per_form ON runs (form_token) WHERE form_token IS NOT NULL;
        ALTER TABLE sweeps ADD COLUMN form_token TEXT;
        CREATE UNIQUE INDEX one_sweep_per_form ON sweeps (form_token) WHERE form_token IS NOT NULL;

        -- Places are consecutive numbers, not times, so that a clock that is set back does not change the order.
        WITH placed AS (SELECT run_number, row_number() OVER (ORDER BY queue_position, run_number) AS place FROM runs)
        UPDATE runs SET queue_position = place FROM placed WHERE placed.run_number = runs.run_number;
        CREATE INDEX runs_by_place ON runs (queue_position);
        """
    )


@history(name="0005_sweeps_note_archive")
def _sweeps_kept(db: Database) -> None:
    db.executescript(
        """
        ALTER TABLE sweeps ADD COLUMN note TEXT NOT NULL DEFAULT '';
        ALTER TABLE sweeps ADD COLUMN archived_at_ms INTEGER;   -- NULL: shown in lists; its runs have the same time
        """
    )


@history(name="0006_contents_and_best_epochs")
def _contents(db: Database) -> None:
    db.executescript(
        """
        ALTER TABLE predictions ADD COLUMN content TEXT NOT NULL DEFAULT '';     -- of the clip's sound; '': not known

        -- Of epochs with equal valid accuracy, the trainer keeps the one with the lowest valid loss.
        UPDATE metric_summaries AS best SET best_step = coalesce((
            SELECT accuracy.step FROM metric_points AS accuracy
            LEFT JOIN metric_points AS loss ON loss.run_number = accuracy.run_number AND loss.step = accuracy.step
                AND loss.metric_number = (SELECT metric_number FROM metric_names WHERE metric = 'valid/loss')
            WHERE accuracy.run_number = best.run_number AND accuracy.metric_number = best.metric_number
                AND accuracy.value = best.best_value
            ORDER BY loss.value IS NULL, loss.value, accuracy.step LIMIT 1), best_step)
        WHERE best_value IS NOT NULL
            AND metric_number = (SELECT metric_number FROM metric_names WHERE metric = 'valid/accuracy');
        """
    )


_OVERVIEW = """
SELECT
    r.id,
    CASE WHEN r.name != '' THEN r.name
         ELSE json_extract(r.config_json, '$.model.variant') || ' · ' || json_extract(r.config_json, '$.data.dataset')
              || ' · seed ' || json_extract(r.config_json, '$.seed') END AS title,
    r.status,
    coalesce(r.slot, r.wanted_device) AS device,
    json_extract(r.config_json, '$.model.variant') AS backbone,
    coalesce(r.weights_label, json_extract(r.config_json, '$.model.weights')) AS weights,
    json_extract(r.config_json, '$.data.dataset') AS dataset,
    json_extract(r.config_json, '$.lora.r') AS lora_rank,
    json_array_length(r.config_json, '$.lora.targets') AS target_modules,
    json_extract(r.facts_json, '$.parameters.trainable') AS trainable_parameters,
    json_extract(r.config_json, '$.seed') AS seed,
    coalesce(valid.last_epoch, 0) AS epochs_done,
    json_extract(r.config_json, '$.training.max_epochs') AS max_epochs,
    valid.best_value AS best_valid_accuracy,
    valid.last_clip_count AS valid_clips,
    test.last_value AS test_accuracy,
    test.last_clip_count AS test_clips,
    strftime('%Y-%m-%d %H:%M:%SZ', r.created_at_ms / 1000, 'unixepoch') AS created_at,
    strftime('%Y-%m-%d %H:%M:%SZ', r.started_at_ms / 1000, 'unixepoch') AS started_at,
    strftime('%Y-%m-%d %H:%M:%SZ', r.ended_at_ms / 1000, 'unixepoch') AS ended_at,
    r.reason
FROM runs AS r
LEFT JOIN metric_summaries AS valid ON valid.run_number = r.run_number
    AND valid.metric_number = (SELECT metric_number FROM metric_names WHERE metric = 'valid/accuracy')
LEFT JOIN metric_summaries AS test ON test.run_number = r.run_number
    AND test.metric_number = (SELECT metric_number FROM metric_names WHERE metric = 'test/accuracy')
ORDER BY r.created_at_ms DESC, r.run_number DESC
"""


def open_database(workspace: Workspace, *, readonly: bool = False, checkpoints: bool = False) -> Database:
    """A connection to runs.db at the current schema, for the calling thread only. Raises WorkspaceError.

    checkpoints: this connection may checkpoint the WAL. Only the supervisor's does, so that pages never wait for it.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        raise WorkspaceError(
            f"SQLite {sqlite3.sqlite_version} is too old: version 3.35 or newer is required (UPDATE..RETURNING)."
        )
    path = workspace.db
    try:
        path.exists()
    except OSError as error:
        raise WorkspaceError(
            f"{workspace.root} cannot be read: {error.strerror}. "
            "Change its permissions, or set SOUSA_WORKSPACE to another folder."
        ) from None
    file_systems.refuse_network(workspace)
    if not readonly:
        make_folders(workspace)
    elif not path.is_file():
        raise WorkspaceError(f"There is no runs.db in {workspace.root}: no run was ever queued here.")
    db = connect_readonly(path) if readonly else _connect_to_write(path, checkpoints)
    try:
        with explained(path):
            if version_of(db, path) < LATEST:
                if readonly:
                    raise WorkspaceError(f"{path} has an older schema and cannot be upgraded: it is opened read-only.")
                db.close()
                with alone(workspace):
                    db = _connect_to_write(path, checkpoints)  # runs.db may have been replaced while we waited
                    _migrate(db, path, history, LATEST)
    except BaseException:
        db.close()
        raise
    return db


def _connect_to_write(path: Path, checkpoints: bool) -> Database:
    db = Database(_connect(str(path)))
    try:
        with explained(path):
            db.execute(f"PRAGMA wal_autocheckpoint = {1000 if checkpoints else 0}")
            db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        db.close()
        raise
    return db


def migrate(db: Database, workspace: Workspace, migrations: Migrations = history, latest: int = LATEST) -> None:
    """Upgrade runs.db to schema `latest`; an older one is backed up first, and the last three backups are kept.

    Several processes may call it at once, and it may be interrupted at any moment: all of the upgrade happens, or
    nothing. Raises WorkspaceError, also if the disk has no room for the backup.
    """
    with alone(workspace):
        _migrate(db, workspace.db, migrations, latest)


def _migrate(db: Database, path: Path, migrations: Migrations, latest: int) -> None:
    # A file lock, as switching to WAL and VACUUM INTO are not possible inside a transaction.
    version = version_of(db, path)
    if version >= latest:
        return
    copy = _copy_aside(db, path, version) if version > 0 else None
    try:
        apply(db, migrations, latest)
    except BaseException:
        if copy:
            copy.unlink(missing_ok=True)  # runs.db is unchanged: repeated attempts would fill the disk with copies
        raise
    for old in _copies(path)[:-COPIES_KEPT]:
        old.unlink(missing_ok=True)


@contextmanager
def alone(workspace: Workspace) -> Iterator[None]:
    """Hold the lock of migrations, waiting for it first. Raises WorkspaceError if it cannot be opened."""
    with _open_lock(workspace.runs / ".migrate.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def create(path: Path) -> Database:
    """A new, empty database at the current schema, for the calling thread only. The file must not exist yet."""
    assert not path.exists()
    db = Database(_connect(str(path)))
    apply(db, history, LATEST)
    return db


def upgrade_file(path: Path) -> None:
    """Upgrade a database that no other process has open, and empty its log. Raises WorkspaceError."""
    with contextlib.closing(Database(_connect(str(path)))) as db, explained(path):
        if version_of(db, path) < LATEST:
            apply(db, history, LATEST)
        db.enable_wal()  # copies are made without WAL
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def take_in_log(path: Path) -> None:
    """Move the log of a database into its file, as far as both can be read. Does nothing if there is no file."""
    if path.is_file():
        with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(_connect(str(path))) as plain:
            plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def copy_into(db: Database, target: Path) -> None:
    """Copy the database into a new file and check the copy; `target` appears only once it is complete.

    Raises WorkspaceError if `target` exists, its disk is full, its folder is missing or the database is damaged.
    """
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        try:
            db.execute("VACUUM INTO ?", [str(part)])
            with contextlib.closing(sqlite3.connect(part)) as copy:
                (said,) = copy.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise WorkspaceError(f"The copy {target} was damaged ({said}) and has been deleted. Try again.")
            with part.open("rb") as file:
                os.fsync(file.fileno())
            _rename_new(part, target)
            sync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        raise WorkspaceError(f"{target} already exists and is not replaced. Choose another name.") from None
    except sqlite3.DatabaseError as error:
        raise _copy_error(error, target) from error
    except OSError as error:
        raise WorkspaceError(f"{target} cannot be written: {error.strerror}.") from error


def _copy_error(error: sqlite3.DatabaseError, target: Path) -> WorkspaceError:
    text = str(error)
    if "full" in text:
        return WorkspaceError(f"The disk of {target.parent} is too full for a copy of runs.db: free some space.")
    if "unable to open" in text:
        return WorkspaceError(f"{target} cannot be written: check that {target.parent} is a folder and writable.")
    if "malformed" in text or "not a database" in text:
        return WorkspaceError(f"runs.db is damaged and cannot be copied ({text}). {REBUILD}")
    return WorkspaceError(f"runs.db could not be copied to {target}: {text}.")


def _rename_new(part: Path, target: Path) -> None:
    """Rename without replacing an existing file: a link fails in that case, a rename does not."""
    try:
        target.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        part.rename(target)


def _copy_aside(db: Database, path: Path, version: int) -> Path:
    for torn in path.parent.glob(".runs.schema-*.part"):  # from a killed migration: we hold its lock
        torn.unlink(missing_ok=True)
    stamp = time.strftime("%y%m%d-%H%M%S")
    copy, more = path.with_name(f"runs.schema-{version}.{stamp}.db"), 1
    while copy.exists():
        copy, more = path.with_name(f"runs.schema-{version}.{stamp}-{more}.db"), more + 1
    copy_into(db, copy)
    return copy


def _copies(path: Path) -> list[Path]:
    """Copies from before migrations, oldest first."""
    return sorted(path.parent.glob("runs.schema-*.db"), key=lambda copy: (copy.stat().st_mtime_ns, copy.name))


def apply(db: Database, migrations: Migrations, latest: int) -> None:
    """Run the missing migrations in one transaction. The caller holds the lock, or has the only connection."""
    db.enable_wal()
    # apply() only opens a deferred transaction, which another writer (such as a SQL prompt) could make fail.
    db.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {latest}")
        db.execute("COMMIT")
    except BaseException:
        db.rollback()
        raise


def _open_lock(path: Path) -> IO[str]:
    try:
        return open(path, "a", opener=private)
    except OSError as error:
        raise WorkspaceError(f"{path} cannot be written: {error.strerror}.") from error


class Look(NamedTuple):
    """The state of runs.db. ids: of its runs. trouble: the answer of SQLite's quick check, "" if it found nothing."""

    version: int
    latest: int
    ids: frozenset[str]
    trouble: str

    @property
    def runs(self) -> int:
        return len(self.ids)


def look(workspace: Workspace) -> Look:
    """Inspect runs.db read-only, at any known schema. Raises WorkspaceError for another program's database."""
    path = workspace.db
    db = connect_readonly(path)
    try:
        with explained(path):
            version = version_of(db, path)
            said = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            ids = frozenset(row[0] for row in db.execute("SELECT id FROM runs")) if version else frozenset()
    finally:
        db.close()
    return Look(version, LATEST, ids, "" if said == "ok" else said)


def version_of(db: Database, path: Path) -> int:
    """The version of its schema, 0 for an empty file.

    Raises WorkspaceError for another program's database and for a newer schema.
    """
    version, program, tables = db.execute(
        "SELECT (SELECT user_version FROM pragma_user_version), (SELECT application_id FROM pragma_application_id),"
        " (SELECT count(*) FROM sqlite_master)"
    ).fetchone()
    if program != APPLICATION_ID and (program or tables):
        raise WorkspaceError(
            f"{path} is another program's SQLite database. Move it, or set SOUSA_WORKSPACE to another folder."
        )
    if version > LATEST:
        raise WorkspaceError(
            f"{path} has schema version {version}; this program supports versions up to {LATEST}. "
            "Update the program, or set SOUSA_WORKSPACE to another folder."
        )
    return version


def read_only(workspace: Workspace) -> str:
    """A sentence for the user if an existing part of the workspace is not writable; else ""."""
    for place in (workspace.root, workspace.runs, workspace.db):
        if place.exists() and not os.access(place, os.W_OK):
            return (
                f"{place} is read-only, so no run can be stored. "
                "Make it writable, or set SOUSA_WORKSPACE to another folder."
            )
    return ""


def make_folders(workspace: Workspace) -> None:
    """Create the folder of runs if it is missing. Raises WorkspaceError if the workspace is not writable."""
    try:
        workspace.make()
    except OSError as error:
        raise WorkspaceError(
            f"{workspace.runs} cannot be created: {error.strerror}. Set SOUSA_WORKSPACE to another folder."
        ) from None
    if trouble := read_only(workspace):
        raise WorkspaceError(trouble)


def _connect(name: str, *, uri: bool = False) -> sqlite3.Connection:
    # isolation_level None: each statement commits at once, except after BEGIN IMMEDIATE.
    try:
        connection = sqlite3.connect(name, timeout=BUSY_TIMEOUT_S, isolation_level=None, uri=uri, factory=_Connection)
    except sqlite3.OperationalError as error:
        raise WorkspaceError(f"{name} cannot be opened: {error}.") from None
    connection.text_factory = _text
    return connection


class _Connection(sqlite3.Connection):
    """Of a file that may be damaged: sqlite3 cannot put bytes that are not UTF-8 into the message of its error."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            raise sqlite3.DatabaseError(f"malformed database schema: {error.object!r}") from None


def _text(data: bytes) -> str:
    """Text as stored; bytes that are not UTF-8 are replaced, so that one row cannot make a query fail."""
    return str(data, "utf-8", "replace")


def connect_readonly(path: Path) -> Database:
    """A read-only connection. Raises WorkspaceError.

    A WAL database needs its -shm file. If that is missing and cannot be created, the file is opened as immutable.
    """
    location = quote(str(path))
    database = Database(_connect(f"file:{location}?mode=ro", uri=True))
    try:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return database
    except sqlite3.OperationalError:
        database.close()
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise WorkspaceError(f"{path} has changes in {log.name}, which need write access to be read.") from None
        return Database(_connect(f"file:{location}?mode=ro&immutable=1", uri=True))
    except sqlite3.DatabaseError:
        database.close()
        raise _not_sqlite(path) from None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into WorkspaceError: see `explain`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise explain(error, path) from error


def explain(error: sqlite3.Error, path: Path) -> WorkspaceError:
    """The error of SQLite as a sentence that says how to fix it."""
    text = str(error)
    if "full" in text:
        return WorkspaceError(f"The disk of {path.parent} is full: free some space. No stored data is lost.")
    if "readonly" in text or "read-only" in text:
        return WorkspaceError(f"{path} is read-only: make it writable, or set SOUSA_WORKSPACE to another folder.")
    if "locked" in text:
        return WorkspaceError(f"Another program locked {path} for {BUSY_TIMEOUT_S:.0f} s. Close it, then try again.")
    if "not a database" in text or "malformed" in text:
        return _not_sqlite(path)
    return WorkspaceError(f"{path}: {text}.")


def _not_sqlite(path: Path) -> WorkspaceError:
    return WorkspaceError(f"{path} is not a readable SQLite database. {REBUILD}")
