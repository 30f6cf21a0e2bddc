"""Sweeps in runs.db: their definitions and their runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sousa_engine.core import config as configs
from sousa_engine.core import errors, sweep_spec
from sousa_engine.core.errors import UnknownNameError, UserError
from sousa_engine.core.records import Run, Sweep, SweepRun, SweepStatus, checked_note
from sousa_engine.store import migrations
from sousa_engine.store.connection import THESE, Connection
from sousa_engine.store.marks import check_over, delete
from sousa_engine.store.runs import insert, of_form, run_of


class Sweeps:
    """`store.sweeps`: adds, finds, extends and closes sweeps, lists their runs, and organises them as `Marks` does."""

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
            _show_again(db, [sweep_id])
            return tuple(
                insert(self._connection, run.config, created_by, sweep_id, run, form_token=of_form(form_token, number))
                for number, run in enumerate(runs)
            )

    def get(self, sweep_id: str) -> Sweep | None:
        return get(self._connection, sweep_id)

    def all(self, status: Collection[SweepStatus] | None = None, *, archived: bool | None = None) -> tuple[Sweep, ...]:
        """Sweeps with one of these statuses (default: any), newest first. archived: None means both."""
        wanted = list(SweepStatus if status is None else status)
        marks = ", ".join("?" * len(wanted))
        sql = (
            f"SELECT * FROM sweeps WHERE status IN ({marks}) AND coalesce((archived_at_ms IS NOT NULL) = ?, 1)"
            " ORDER BY created_at_ms DESC, id DESC"
        )
        return tuple(_sweep_of(row) for row in self._connection.query(sql, [*wanted, archived]))

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

    def rename(self, sweep_id: str, name: str) -> Sweep:
        """Set the name of a sweep; "" means the automatic one, from its axes.

        Raises ConfigError for a name that is too long or cannot be shown, UnknownNameError.
        """
        checked = configs.build({"name": name}).name
        title = checked or sweep_spec.build({**existing_sweep(self._connection, sweep_id).spec, "name": ""}).title
        with self._connection.writing() as db:
            db.execute(
                "UPDATE sweeps SET name = ?, spec_json = json_set(spec_json, '$.name', ?) WHERE id = ?",
                [title, checked, sweep_id],
            )
        return existing_sweep(self._connection, sweep_id)

    def set_note(self, sweep_id: str, text: str) -> Sweep:
        """Set the note of a sweep; "" removes it. Raises UserError if it is too long, UnknownNameError."""
        note = checked_note(text)
        with self._connection.writing() as db:
            db.execute("UPDATE sweeps SET note = ? WHERE id = ?", [note, sweep_id])
        return existing_sweep(self._connection, sweep_id)

    def archive(self, sweep_ids: Iterable[str]) -> None:
        """Hide sweeps and their runs from lists without deleting them: all of them, or none if it raises.

        Raises UnknownNameError; UserError for a sweep or a run that has not ended.
        """
        ids, now = list(sweep_ids), self._connection.clock_ms()
        with self._connection.writing() as db:
            self._check_over(ids, "archived")
            check_over(self._connection, self._run_ids(ids), "archived")
            for table, key in (("runs", "sweep_id"), ("sweeps", "id")):
                db.execute(
                    f"UPDATE {table} SET archived_at_ms = ? WHERE {key} IN {THESE} AND archived_at_ms IS NULL",
                    [now, json.dumps(ids)],
                )

    def unarchive(self, sweep_ids: Iterable[str]) -> None:
        """Show archived sweeps again, with the runs that were archived with them."""
        with self._connection.writing() as db:
            _show_again(db, list(sweep_ids))

    def delete(self, sweep_ids: Iterable[str]) -> None:
        """Delete sweeps with all their runs: all of them, or none if it raises.

        Raises UnknownNameError; UserError for a sweep or a run that has not ended. If the process dies half-way, the
        next opening of the store completes or reverts it: see trash.py.
        """
        ids = list(dict.fromkeys(sweep_ids))
        self._check_over(ids, "deleted")
        delete(self._connection, self._run_ids(ids), ids)

    def _run_ids(self, sweep_ids: Sequence[str]) -> list[str]:
        sql = f"SELECT id FROM runs WHERE sweep_id IN {THESE} ORDER BY run_number"
        return [row["id"] for row in self._connection.query(sql, [json.dumps(list(sweep_ids))])]

    def _check_over(self, sweep_ids: Iterable[str], what: str) -> None:
        for sweep_id in sweep_ids:
            found = existing_sweep(self._connection, sweep_id)
            if not found.status.is_over:
                raise UserError(
                    f"Only sweeps that have ended can be {what}: {sweep_id} is {found.status.value}. Stop it first."
                )


def _show_again(db: migrations.Database, sweep_ids: Sequence[str]) -> None:
    ids = json.dumps(list(sweep_ids))
    db.execute(
        "UPDATE runs SET archived_at_ms = NULL FROM sweeps WHERE sweeps.id = runs.sweep_id"
        f" AND sweeps.id IN {THESE} AND runs.archived_at_ms = sweeps.archived_at_ms",
        [ids],
    )
    db.execute(f"UPDATE sweeps SET archived_at_ms = NULL WHERE id IN {THESE}", [ids])


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
        note=row["note"],
        archived_at_ms=row["archived_at_ms"],
    )
