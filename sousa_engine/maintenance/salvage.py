"""Read what is left of a runs.db that may be damaged, and write a new one. The SQL of rebuild.py, which decides."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.core.records import Event, Prediction
from sousa_engine.store import Store, events, migrations, now_ms
from sousa_engine.store.connection import Connection
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace
from sousa_engine.workspace.spool import SpoolBatch, SpoolPoint

Row = Mapping[str, Any]
# Made from the run folders or by triggers; all other tables are copied unchanged, whatever they are.
_MADE = {
    *("runs", "listed_runs", "events", "predictions"),
    *("metric_names", "metric_points", "metric_levels", "metric_summaries"),
}


class Old:
    """The old runs.db, as far as it can be read. damaged: whether a part could not be read."""

    def __init__(self, db: migrations.Database | None, *, damaged: bool):
        self._db = db
        self.damaged = damaged
        self._version = self._changes()

    @classmethod
    def open(cls, path: Path) -> Old:
        """Read-only. Raises WorkspaceError if it is another program's database or of a newer version."""
        if not path.is_file() or not path.stat().st_size:
            return cls(None, damaged=True)
        try:
            db = migrations.connect_readonly(path)
        except WorkspaceError:
            return cls(None, damaged=True)
        try:
            if migrations.version_of(db, path):
                return cls(db, damaged=False)
        except sqlite3.DatabaseError:
            pass
        except WorkspaceError:
            db.close()
            raise
        db.close()
        return cls(None, damaged=True)

    @property
    def is_readable(self) -> bool:
        return self._db is not None

    def __enter__(self) -> Old:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._db is not None:
            self._db.close()

    def was_changed(self) -> bool:
        """Whether another process wrote to it since it was opened."""
        return self._changes() != self._version

    def tables(self) -> list[str]:
        return [row["name"] for row in self._all("SELECT name FROM sqlite_master WHERE type = 'table'")]

    def rows(self, table: str) -> list[Row]:
        """All rows of a table; if it is damaged, those before and those after the damage."""
        found: dict[tuple, Row] = {}
        for order in ("ASC", "DESC"):
            key = self._key(table)
            if key is None:
                break
            sql = f"SELECT * FROM [{table}] ORDER BY {', '.join(f'{column} {order}' for column in key)}"
            try:
                assert self._db is not None
                for row in self._db.query(sql):
                    found.setdefault(tuple(row.values()), row)
                break
            except sqlite3.DatabaseError:
                self.damaged = True
        return list(found.values())

    def run(self, run_id: str) -> Row | None:
        """Looked up by its index, which may work if the table cannot be read row by row."""
        return next(iter(self._all("SELECT * FROM runs WHERE id = ?", [run_id])), None)

    def events(self, number: int) -> list[Event]:
        sql = "SELECT at_ms, kind, message FROM events WHERE run_number = ? ORDER BY event_number"
        return [Event(**row) for row in self._all(sql, [number])]

    def predictions(self, number: int) -> list[Prediction]:
        found = self._all("SELECT * FROM predictions WHERE run_number = ?", [number])
        values: list[dict[str, Any]] = [
            {k: float("nan") if v is None else v for k, v in row.items() if k != "run_number"} for row in found
        ]
        return [Prediction(**one) for one in values]

    def points(self, number: int) -> list[SpoolPoint]:
        sql = (
            "SELECT metric, step, coalesce(value, not_finite) AS value, epoch, clip_count AS n, at_ms"
            " FROM metric_points JOIN metric_names USING (metric_number) WHERE run_number = ? ORDER BY at_ms, step"
        )
        return [SpoolPoint(**{**row, "value": float(row["value"])}) for row in self._all(sql, [number])]

    def _key(self, table: str) -> list[str] | None:
        """The key columns of the table's own tree: reading in its order needs no other part to be intact."""
        made = self._all("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", [table])
        if not made:
            return None
        if "WITHOUT ROWID" not in made[0]["sql"].upper():
            return ["rowid"]
        columns = self._all("SELECT name FROM pragma_table_info(?) WHERE pk ORDER BY pk", [table])
        return [f"[{row['name']}]" for row in columns]

    def _changes(self) -> list[Row]:
        return self._all("PRAGMA data_version")

    def _all(self, sql: str, values: Iterable[Any] = ()) -> list[Row]:
        """The rows before the first damage."""
        found: list[Row] = []
        if self._db is not None:
            try:
                found.extend(self._db.query(sql, list(values)))
            except sqlite3.DatabaseError:
                self.damaged = True
        return found


class New:
    """A new database next to the old one. `finish` checks it and leaves one complete file, without a log."""

    def __init__(self, path: Path, workspace: Workspace):
        self.path = path
        for stale in database_files(path):
            stale.unlink(missing_ok=True)  # of a rebuild that was killed
        self._db = migrations.create(path)
        self._db.execute("PRAGMA wal_autocheckpoint = 10000")
        self._store = Store(Connection(self._db, workspace))
        self._ledger = Ledger(self._store)

    def __enter__(self) -> New:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._db.close()
        if error is not None:
            for torn in database_files(self.path):
                torn.unlink(missing_ok=True)

    def take_over(self, old: Old) -> None:
        """Copy the tables that are in no folder: sweeps, saved target sets, and any others."""
        here = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        with self._writing():
            for table in old.tables():
                if table in here - _MADE and not table.startswith(("sqlite_", "_sqlite")):
                    for row in old.rows(table):
                        with contextlib.suppress(sqlite3.IntegrityError):
                            self._insert(table, row, "INSERT OR REPLACE")  # a new queue already has its row

    def has_sweep(self, sweep_id: str) -> bool:
        return self._store.sweeps.get(sweep_id) is not None

    def run_count(self) -> int:
        return self._store.runs.count()

    def add_run(self, row: Row) -> bool:
        """False if the row is invalid: a salvaged row may be incomplete."""
        try:
            with self._writing():
                self._insert("runs", row)
            # A row that this version cannot read is kept: a newer one can. One from a damaged page is not.
            return self._store.runs.get(row["id"]) is not None
        except (sqlite3.DatabaseError, WorkspaceError, ValueError, TypeError, KeyError):
            with self._writing():
                self._db.execute("DELETE FROM runs WHERE id = ?", [row.get("id")])
            return False

    def ingest(self, run_id: str, batch: SpoolBatch) -> None:
        taken = self._ledger.ingest(run_id, replace(batch, events=()))  # see add_events
        assert taken, "batches follow each other"

    def add_events(self, run_id: str, *groups: Iterable[Event]) -> None:
        """Add events in the given order, without those that an earlier group has."""
        added: Counter[Event] = Counter()
        with self._writing():
            for group in groups:
                here = Counter[Event]()
                for event in group:
                    here[event] += 1
                    if here[event] > added[event]:
                        events.add(self._store.connection, run_id, event.kind, event.message, event.at_ms)
                added |= here

    def save_predictions(self, run_id: str, predictions: Iterable[Prediction]) -> None:
        self._ledger.save_predictions(run_id, predictions)

    def finish(self) -> None:
        """Raises WorkspaceError if the new database is not intact; nothing was replaced then."""
        with migrations.explained(self.path):
            damage = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            broken = self._db.execute("PRAGMA foreign_key_check").fetchone()
            if damage != "ok" or broken:
                raise WorkspaceError(f"The new database is not intact ({damage}, {broken}); runs.db is unchanged.")
            self._ledger.checkpoint_wal()

    def _insert(self, table: str, row: Row, how: str = "INSERT") -> None:
        known = [name for name in self._columns(table) if name in row]
        marks = ", ".join("?" * len(known))
        names = ", ".join(f"[{name}]" for name in known)
        self._db.execute(f"{how} INTO [{table}] ({names}) VALUES ({marks})", [row[name] for name in known])

    def _columns(self, table: str) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT name FROM pragma_table_info(?)", [table])]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._store.connection.writing(durable=False):
            yield


def pause_queue(path: Path) -> None:
    """Pause the queue of a database that has the current schema and is not open elsewhere."""
    with contextlib.closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("UPDATE queue SET paused_at_ms = coalesce(paused_at_ms, ?)", [now_ms()])


def database_files(path: Path) -> tuple[Path, ...]:
    """A database's file, its write-ahead log and the log's index."""
    return tuple(path.with_name(path.name + end) for end in ("", "-wal", "-shm"))
