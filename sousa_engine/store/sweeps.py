"""Sweeps in runs.db: their definitions and their runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sousa_engine.core import errors
from sousa_engine.core.errors import UnknownNameError
from sousa_engine.core.records import Run, Sweep, SweepRun, SweepStatus
from sousa_engine.store.connection import Connection
from sousa_engine.store.rows import run_of
from sousa_engine.store.runs import insert, of_form


class Sweeps:
    """`store.sweeps`: adds, finds, extends and closes sweeps, and lists their runs."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def add(
        self,
        name: str,
        spec: Mapping[str, Any],
        runs: Iterable[SweepRun],
        *,
        created_by: str,
        form_token: str | None = None,
    ) -> Sweep:
        """Add a RUNNING sweep with its first runs, all or nothing. form_token: see `Runs.enqueue`."""
        now = self._connection.clock_ms()
        with self._connection.writing() as db:
            made = db.execute("SELECT id FROM sweeps WHERE form_token = ?", [form_token]).fetchone()
            sweep_id = made[0] if made else self._connection.new_id("sweeps", now)
            if not made:
                db.execute(
                    "INSERT INTO sweeps (id, name, status, spec_json, created_by, created_at_ms, form_token)"
                    " VALUES (?, ?, 'running', ?, ?, ?, ?)",
                    [sweep_id, name, json.dumps(spec), created_by, now, form_token],
                )
                for run in runs:
                    insert(self._connection, run.config, created_by, sweep_id, run)
        return existing_sweep(self._connection, sweep_id)

    def extend(
        self,
        sweep_id: str,
        runs: Iterable[SweepRun],
        *,
        created_by: str,
        spec: Mapping[str, Any] | None = None,
        form_token: str | None = None,
    ) -> tuple[str, ...]:
        """Add runs to a sweep, with its new definition if given; a sweep that had ended is RUNNING again.

        form_token: see `Runs.enqueue`. Returns the ids of the runs. Raises UnknownNameError.
        """
        with self._connection.writing() as db:
            changed = db.execute(
                "UPDATE sweeps SET spec_json = coalesce(?, spec_json), ended_at_ms = NULL, reason = NULL,"
                " status = iif(status = 'paused', 'paused', 'running') WHERE id = ?",
                [None if spec is None else json.dumps(spec), sweep_id],
            ).rowcount
            if not changed:
                raise UnknownNameError(f"No sweep has the id {sweep_id!r}.")
            return tuple(
                insert(self._connection, run.config, created_by, sweep_id, run, form_token=of_form(form_token, number))
                for number, run in enumerate(runs)
            )

    def get(self, sweep_id: str) -> Sweep | None:
        return get(self._connection, sweep_id)

    def all(self, status: Collection[SweepStatus] | None = None) -> tuple[Sweep, ...]:
        """Sweeps with one of these statuses (default: any), newest first."""
        wanted = list(SweepStatus if status is None else status)
        marks = ", ".join("?" * len(wanted))
        sql = f"SELECT * FROM sweeps WHERE status IN ({marks}) ORDER BY created_at_ms DESC, id DESC"
        return tuple(_sweep_of(row) for row in self._connection.query(sql, wanted))

    def find(self, text: str) -> Sweep:
        """The sweep with this id, or the only one with this name or this start or end of its id; "last": the newest.

        Raises UnknownNameError, which suggests similar ids and names.
        """
        every = self.all()
        if not every:
            raise UnknownNameError("There are no sweeps yet. To start one, see: python -m sousa_engine sweep --help")
        if text == "last":
            return every[0]
        found = [sweep for sweep in every if text in (sweep.id, sweep.name)]
        found = found or [s for s in every if text and (s.id.startswith(text) or s.id.endswith(text))]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(
                f"{text!r} matches several sweeps: {', '.join(s.id for s in found[:9])}. Enter more characters."
            )
        raise errors.unknown("sweep", text, [s.id for s in every] + [s.name for s in every if s.name])

    def runs(self, sweep_id: str) -> tuple[Run, ...]:
        """The runs of a sweep, by trial, then in the order in which they were created."""
        sql = "SELECT * FROM runs WHERE sweep_id = ? ORDER BY trial_number, run_number"
        return tuple(run_of(row) for row in self._connection.query(sql, [sweep_id]))

    def open_run_count(self, sweep_id: str) -> int:
        """The number of runs of a sweep that have not ended."""
        sql = "SELECT count(*) AS n FROM runs WHERE sweep_id = ? AND ended_at_ms IS NULL"
        return self._connection.query(sql, [sweep_id])[0]["n"]

    def set_status(
        self, sweep_id: str, status: SweepStatus, *, leaving: Collection[SweepStatus], reason: str | None = None
    ) -> bool:
        """Compare and set: returns False if the old status is not in `leaving`. Queued runs of a PAUSED sweep wait."""
        ended = self._connection.clock_ms() if status.is_over else None
        with self._connection.writing() as db:
            marks = ", ".join("?" * len(leaving))
            return (
                db.execute(
                    f"UPDATE sweeps SET status = ?, ended_at_ms = ?, reason = ? WHERE id = ? AND status IN ({marks})",
                    [status.value, ended, reason, sweep_id, *leaving],
                ).rowcount
                > 0
            )


def get(connection: Connection, sweep_id: str) -> Sweep | None:
    found = connection.query("SELECT * FROM sweeps WHERE id = ?", [sweep_id])
    return _sweep_of(found[0]) if found else None


def existing_sweep(connection: Connection, sweep_id: str) -> Sweep:
    sweep = get(connection, sweep_id)
    if sweep is None:
        raise UnknownNameError(f"No sweep has the id {sweep_id!r}.")
    return sweep


def _sweep_of(row: Mapping[str, Any]) -> Sweep:
    return Sweep(
        id=row["id"],
        name=row["name"],
        spec=json.loads(row["spec_json"]),
        status=SweepStatus(row["status"]),
        created_at_ms=row["created_at_ms"],
        ended_at_ms=row["ended_at_ms"],
        reason=row["reason"],
    )
