"""Changes that only the supervisor makes: claim, ingest, finish. Pages and commands never use them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from sousa_engine.core.errors import UnknownNameError
from sousa_engine.core.records import Attempt, Event, Prediction, Run, RunStatus
from sousa_engine.store import metric_tables
from sousa_engine.store.events import add, change
from sousa_engine.store.queue import NOT_PAUSED
from sousa_engine.store.runs import SLOT_HELD, get
from sousa_engine.store.store import Store
from sousa_engine.workspace.spool import SpoolBatch


class Ledger:
    """Takes runs through their attempts: claims them, records their progress and ends them.

    Each change of status is one statement that checks the old status, so concurrent changes cannot overwrite each
    other.
    """

    def __init__(self, store: Store):
        self._connection = store.connection

    def claim(self, slot: str, nonce: str, devices: Collection[str] | None = None) -> Run | None:
        """Set the next queued run for `slot` to STARTING and return it; None if there is none or the slot is taken.

        nonce: names the new attempt. devices: requested devices that fit the slot; default: the slot itself and "auto".
        """
        wanted = [slot, "auto"] if devices is None else list(devices)
        with self._connection.writing() as db:
            # One UPDATE, not atomic(): a deferred BEGIN cannot upgrade once another writer committed.
            rows = db.execute(
                "UPDATE runs SET status = 'starting', slot = ?, launch_nonce = ?, claimed_at_ms = ?,"
                " stop_requested_at_ms = NULL, kill_requested_at_ms = NULL,"  # of an earlier attempt
                " launches = launches + 1 WHERE run_number = (SELECT run_number FROM runs WHERE status = 'queued'"
                f" AND wanted_device IN ({', '.join('?' * len(wanted))}) AND {NOT_PAUSED}"
                " ORDER BY queue_position, run_number LIMIT 1)"
                f" AND NOT EXISTS (SELECT 1 FROM runs WHERE slot = ? AND {SLOT_HELD}) RETURNING id",
                [slot, nonce, self._connection.clock_ms(), *wanted, slot],
            ).fetchall()
            if rows:
                add(self._connection, rows[0][0], "claimed", f"Claimed for {slot}.", self._connection.clock_ms())
        return get(self._connection, rows[0][0]) if rows else None

    def attempt(self, run_id: str) -> Attempt:
        """The latest attempt of a run. Raises UnknownNameError."""
        sql = "SELECT launch_nonce AS nonce, spool_bytes_ingested AS spool_offset FROM runs WHERE id = ?"
        found = self._connection.query(sql, [run_id])
        if not found:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        return Attempt(**found[0])

    def mark_running(self, run_id: str, nonce: str, *, started_at_ms: int) -> bool:
        """starting -> running, once the keeper of this attempt is seen. A stop requested since then is kept."""
        return change(
            self._connection,
            run_id,
            "UPDATE runs SET status = iif(status = 'starting', 'running', status), started_at_ms = :started"
            " WHERE id = :id AND launch_nonce = :nonce AND started_at_ms IS NULL"
            " AND status IN ('starting', 'stopping')",
            {"nonce": nonce, "started": started_at_ms},
            Event(at_ms=started_at_ms, kind="started", message="The trainer has started."),
        )

    def requeue(self, run_id: str, nonce: str, message: str) -> bool:
        """starting -> queued: the attempt failed to start."""
        return change(
            self._connection,
            run_id,
            "UPDATE runs SET status = 'queued', slot = NULL, claimed_at_ms = NULL"
            " WHERE id = :id AND launch_nonce = :nonce AND status = 'starting'",
            {"nonce": nonce},
            Event(at_ms=self._connection.clock_ms(), kind="queued again", message=message),
        )

    def finish(
        self,
        run_id: str,
        status: RunStatus,
        reason: str | None,
        *,
        nonce: str | None,
        ended_at_ms: int | None = None,
        events: Collection[Event] = (),
    ) -> bool:
        """End attempt `nonce` of a run or, with nonce None, a run still queued. False if it had ended already."""
        assert status.is_over
        return change(
            self._connection,
            run_id,
            "UPDATE runs SET status = :status, ended_at_ms = :ended,"
            " reason = iif(:status = 'stopped' AND pruned_at_step IS NOT NULL, reason, :reason) WHERE id = :id AND"
            f" iif(:nonce IS NULL, status = 'queued', launch_nonce = :nonce AND {SLOT_HELD})",
            {"status": status, "reason": reason, "nonce": nonce, "ended": ended_at_ms or self._connection.clock_ms()},
            *events,
            Event(at_ms=self._connection.clock_ms(), kind=status.value, message=reason or "The trainer finished."),
        )

    def prune(self, run_id: str, step: int, reason: str) -> bool:
        """Set a run that its sweep gives up to STOPPING, and keep the reason. False if it is not active any more."""
        return change(
            self._connection,
            run_id,
            "UPDATE runs SET status = 'stopping', stop_requested_at_ms = :now, pruned_at_step = :step, reason = :reason"
            " WHERE id = :id AND status IN ('starting', 'running')",
            {"now": self._connection.clock_ms(), "step": step, "reason": reason},
            Event(at_ms=self._connection.clock_ms(), kind="pruned", message=reason),
        )

    def ingest(self, run_id: str, batch: SpoolBatch) -> bool:
        """Store the points, progress, events and facts of a batch, and its end, in one transaction.

        Returns False and changes nothing if the batch does not start where the last one ended, so that no line is
        counted twice.
        """
        with self._connection.writing(durable=False) as db:
            taken = db.execute(
                "UPDATE runs SET spool_bytes_ingested = :end, progress_json = coalesce(:progress, progress_json),"
                " facts_json = json_patch(facts_json, :facts),"
                " weights_label = coalesce(json_extract(:facts, '$.weights_label'), weights_label)"
                " WHERE id = :id AND spool_bytes_ingested = :start RETURNING run_number",
                {
                    "id": run_id,
                    "start": batch.start,
                    "end": batch.end,
                    "progress": json.dumps(vars(batch.progress)) if batch.progress else None,
                    "facts": json.dumps(dict(batch.facts or {})),
                },
            ).fetchall()
            if not taken:
                return False
            number = taken[0][0]
            db.conn.executemany(
                "INSERT INTO events (run_number, at_ms, kind, message) VALUES (?, ?, ?, ?)",
                [(number, e.at_ms, e.kind, e.message) for e in batch.events],
            )
            metric_tables.add_points(db, number, batch.points)
        return True

    def read_spool_again_from(self, run_id: str, offset: int) -> None:
        """Move the read position back when a spool is shorter than the ingested part. Only between two attempts."""
        lost = "The end of the spool file is missing, but it was already ingested: no measurement is lost."
        change(
            self._connection,
            run_id,
            "UPDATE runs SET spool_bytes_ingested = :offset WHERE id = :id AND spool_bytes_ingested > :offset",
            {"offset": offset},
            Event(at_ms=self._connection.clock_ms(), kind="storage", message=lost),
        )

    def save_predictions(self, run_id: str, predictions: Iterable[Prediction]) -> None:
        """Store the predictions of a run; they replace its earlier ones."""
        number = self._connection.number(run_id)
        with self._connection.writing() as db:
            db.execute("DELETE FROM predictions WHERE run_number = ?", [number])
            db.table("predictions").insert_all(({"run_number": number, **vars(p)} for p in predictions), replace=True)

    def add_event(self, run_id: str, kind: str, message: str) -> None:
        with self._connection.writing():
            add(self._connection, run_id, kind, message, self._connection.clock_ms())

    def add_events_once(self, run_id: str, events: Iterable[Event]) -> None:
        """Add the events that the run does not have yet, compared by time, kind and message."""
        with self._connection.writing() as db:
            for event in events:
                known = db.execute(
                    "SELECT 1 FROM events JOIN runs USING (run_number) WHERE id = ? AND at_ms = ? AND kind = ?"
                    " AND message = ?",
                    [run_id, event.at_ms, event.kind, event.message],
                ).fetchone()
                if not known:
                    add(self._connection, run_id, event.kind, event.message, event.at_ms)

    def checkpoint_wal(self) -> None:
        """Move the write-ahead log into runs.db, as far as readers allow."""
        self._connection.query("PRAGMA wal_checkpoint(TRUNCATE)")
