"""The event log of each run. An event is written in the same transaction as the change it describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sousa_engine.core.records import Event
from sousa_engine.store.connection import Connection
from sousa_engine.store.rows import event_of


def add(connection: Connection, run_id: str, kind: str, message: str, at_ms: int) -> None:
    """Add an event. Call it within a transaction."""
    connection.db.execute(
        "INSERT INTO events (run_number, at_ms, kind, message)"
        " SELECT run_number, :at, :kind, :message FROM runs WHERE id = :id",
        {"id": run_id, "at": at_ms, "kind": kind, "message": message},
    )


def change(connection: Connection, run_id: str, sql: str, values: Mapping[str, Any], *events: Event) -> bool:
    """Compare and set: `sql` names the status that it replaces. Adds the events only if the row was changed."""
    with connection.writing() as db:
        changed = db.execute(sql, {"id": run_id, **values}).rowcount > 0
        for event in events if changed else ():
            add(connection, run_id, event.kind, event.message, event.at_ms)
    return changed


def of_run(connection: Connection, run_id: str) -> tuple[Event, ...]:
    """The events of a run, oldest first. Raises UnknownNameError."""
    sql = "SELECT at_ms, kind, message FROM events WHERE run_number = ? ORDER BY at_ms, event_number"
    return tuple(event_of(row) for row in connection.query(sql, [connection.number(run_id)]))
