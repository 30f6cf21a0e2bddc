"""A connection to runs.db, shared by the parts of a Store: reads, transactions and ids."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sousa_engine.core.errors import UnknownNameError
from sousa_engine.store import listing, migrations
from sousa_engine.workspace import Workspace

THESE = "(SELECT value FROM json_each(?))"  # bound to a JSON list of ids
_ID_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # without characters that look alike: 0 o, 1 i l
_OF_THE_FILE = sqlite3.DatabaseError
_OF_THE_VALUES = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Connection:
    """Belongs to one thread. db: an open, migrated database. clock_ms: returns the current time in ms since 1970."""

    def __init__(self, db: migrations.Database, workspace: Workspace, clock_ms: Callable[[], int] = now_ms):
        self.db = db
        self.workspace = workspace
        self.clock_ms = clock_ms
        listing.prepare(db)

    def close(self) -> None:
        self.db.close()

    def query(self, sql: str, values: Any = ()) -> list[dict[str, Any]]:
        with self.reading() as db:
            return list(db.query(sql, values))

    @contextmanager
    def reading(self) -> Iterator[migrations.Database]:
        try:
            yield self.db
        except sqlite3.DatabaseError as error:
            raise migrations.explain(error, self.workspace.db) from error

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[migrations.Database]:
        """A transaction (BEGIN IMMEDIATE): waits for other writers first, so they cannot make it fail half-way.

        durable: the data is on disk when this returns. Not needed for metrics, which are still in their spool.
        """
        db = self.db
        try:
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except BaseException as error:
            db.rollback()
            if isinstance(error, _OF_THE_FILE) and not isinstance(error, _OF_THE_VALUES):
                raise migrations.explain(error, self.workspace.db) from error
            raise

    def number(self, run_id: str) -> int:
        """The integer key of a run. Raises UnknownNameError."""
        found = self.query("SELECT run_number FROM runs WHERE id = ?", [run_id])
        if not found:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        return found[0]["run_number"]

    def new_id(self, table: str, at_ms: int) -> str:
        """An id that is not in `table` yet."""
        found = _new_id(at_ms)
        while self.db.execute(f"SELECT 1 FROM {table} WHERE id = ?", [found]).fetchone():
            found = _new_id(at_ms)  # two ids of the same second collide once in 900,000
        return found


def _new_id(at_ms: int) -> str:
    """Sortable, readable in local time, and safe in a URL and in a file name: 260131-142305-k7mq."""
    tail = "".join(secrets.choice(_ID_LETTERS) for _ in range(4))
    return f"{time.strftime('%y%m%d-%H%M%S', time.localtime(at_ms / 1000))}-{tail}"
