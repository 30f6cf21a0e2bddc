"""Queue, find, list, stop and resume runs. Each change of status is one statement that checks the old status."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest

from sousa_engine.core import errors
from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import UnknownNameError, UserError
from sousa_engine.core.records import (
    ClipScore,
    Event,
    Listing,
    Origin,
    Prediction,
    Run,
    RunFilter,
    RunRow,
    RunStatus,
    SweepRun,
)
from sousa_engine.store import events, listing
from sousa_engine.store.connection import Connection
from sousa_engine.store.rows import prediction_of, run_of

SLOT_HELD = "status IN ('starting', 'running', 'stopping')"
_QUEUED = {"cli": "Queued from the command line.", "page": "Queued from the studio."}
RETRY = "retry of"  # kind of an event; its message is the id of the failed run
LAST_PLACE = "coalesce((SELECT max(queue_position) FROM runs), 0) + 1"
_INSERT_RUN = f"""
INSERT INTO runs (id, name, status, wanted_device, queue_position, created_by, created_at_ms, config_json,
                  sweep_id, trial_number, setting_json, form_token)
VALUES (:id, :name, 'queued', :wanted_device, {LAST_PLACE}, :created_by,
        :now, :config, :sweep, :trial, :setting, :token)
"""


def not_resumable(run: Run) -> str:
    """The reason why a run cannot be resumed in its status; "" if it can."""
    if run.status is RunStatus.FINISHED:
        return f"Run {run.id} is finished. To train longer, start a new run with more epochs."
    return "" if run.status.is_over else f"Run {run.id} is {run.status.value}: only ended runs can be resumed."


class Runs:
    """`store.runs`: queues, finds, lists, stops and resumes runs, and reads their events and predictions."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def enqueue(self, config: RunConfig, *, created_by: str = "page", form_token: str | None = None) -> Run:
        """Add a run at the end of the queue. The caller then starts a supervisor.

        form_token: identifies a submitted form; submitting it again returns the run that it created the first time.
        """
        return self.enqueue_all([config], created_by=created_by, form_token=form_token)[0]

    def enqueue_all(
        self,
        configs: Sequence[RunConfig],
        *,
        created_by: str = "page",
        form_token: str | None = None,
        origins: Sequence[Origin] = (),
    ) -> tuple[Run, ...]:
        """Add runs in this order, all or none. form_token: see `enqueue`. origins: of clones, one per config."""
        with self._connection.writing():
            ids = [
                insert(self._connection, config, created_by, form_token=of_form(form_token, number), origin=origin)
                for number, (config, origin) in enumerate(zip_longest(configs, origins))
            ]
        return tuple(existing(self._connection, run_id) for run_id in ids)

    def get(self, run_id: str) -> Run | None:
        return get(self._connection, run_id)

    def find(self, text: str) -> Run:
        """The run with this id, or the only one with this name or this start or end of its id; "last": the newest.

        Raises UnknownNameError, which suggests similar ids and names.
        """
        if text == "last":
            newest = self._connection.query("SELECT * FROM runs ORDER BY created_at_ms DESC, run_number DESC LIMIT 1")
            if not newest:
                raise UnknownNameError("There is no last run: no run was ever queued here.")
            return run_of(newest[0])
        found = self._connection.query("SELECT * FROM runs WHERE id = ?", [text])
        found = found or self._connection.query(
            "SELECT * FROM runs WHERE :text != '' AND name = :text ORDER BY run_number DESC LIMIT 9", {"text": text}
        )
        found = found or self._connection.query(
            "SELECT * FROM runs WHERE :text != '' AND (substr(id, 1, length(:text)) = :text"
            " OR substr(id, -length(:text)) = :text) ORDER BY run_number DESC LIMIT 9",
            {"text": text},
        )
        if len(found) == 1:
            return run_of(found[0])
        if found:
            raise UnknownNameError(
                f"{text!r} matches several runs: {', '.join(row['id'] for row in found)}. Use an id."
            )
        newest = self._connection.query("SELECT id, name FROM runs ORDER BY run_number DESC LIMIT 200")
        if not newest:
            raise UnknownNameError(f"There is no run named {text!r}: no run was ever queued here.")
        raise errors.unknown(
            "run", text, [row["id"] for row in newest] + [row["name"] for row in newest if row["name"]]
        )

    def all(
        self,
        status: RunStatus | Collection[RunStatus] | None = None,
        limit: int | None = None,
        newest_first: bool = True,
    ) -> tuple[Run, ...]:
        """All runs with this status (default: any) that can be read, sorted by time of creation. See `unreadable`."""
        wanted = [status] if isinstance(status, str) else list(status) if status is not None else list(RunStatus)
        order = "DESC" if newest_first else "ASC"
        sql = (
            f"SELECT * FROM runs WHERE status IN ({', '.join('?' * len(wanted))})"
            f" ORDER BY created_at_ms {order}, run_number {order} LIMIT ?"
        )
        found = map(run_of, self._connection.query(sql, [*wanted, -1 if limit is None else limit]))
        return tuple(run for run in found if not run.unreadable)

    def unreadable(self) -> tuple[Run, ...]:
        """The runs that this version cannot read, oldest first: each says why. They can be stopped and deleted."""
        found = map(run_of, self._connection.query("SELECT * FROM runs ORDER BY run_number"))
        return tuple(run for run in found if run.unreadable)

    def listing(
        self,
        wanted: RunFilter | None = None,
        *,
        sort: str = "created",
        descending: bool = True,
        limit: int | None = None,
        offset: int = 0,
    ) -> Listing:
        """Rows of the list of runs, without configs; takes milliseconds for 10,000 runs. sort: a key of listing.SORTS.

        Without a filter, all runs that are not archived. Raises UnknownNameError for an unknown sort order.
        """
        with self._connection.reading() as db:
            found = listing.matching(db, wanted or RunFilter(), sort, descending)
            shown = found[offset:] if limit is None else found[offset : offset + limit]
            return Listing(rows=listing.rows(db, shown), total=len(found))

    def rows(self, run_ids: Iterable[str]) -> tuple[RunRow, ...]:
        """The rows of these runs, in the given order, without unknown ids."""
        return rows(self._connection, run_ids)

    def count(self) -> int:
        return self._connection.query("SELECT count(*) AS n FROM listed_runs")[0]["n"]

    def request_stop(self, run_id: str, *, at_once: bool = False) -> Run:
        """Set a queued run to STOPPED and an active one to STOPPING, which the supervisor then stops.

        at_once: kill an active run without a checkpoint, even if it is already STOPPING. A run that has ended is not
        changed. Raises UnknownNameError.
        """
        now = self._connection.clock_ms()
        with self._connection.writing() as db:
            # Each UPDATE checks the old status, in case a supervisor claims the run at the same time.
            stopped = db.execute(
                "UPDATE runs SET status = 'stopped', ended_at_ms = ?, stop_requested_at_ms = ?,"
                " reason = 'Stopped before it started.' WHERE id = ? AND status = 'queued'",
                [now, now, run_id],
            ).rowcount
            stopping = db.execute(
                "UPDATE runs SET status = 'stopping', stop_requested_at_ms = ?"
                " WHERE id = ? AND status IN ('starting', 'running')",
                [now, run_id],
            ).rowcount
            killing = (
                at_once
                and db.execute(
                    "UPDATE runs SET kill_requested_at_ms = ?"
                    " WHERE id = ? AND status = 'stopping' AND kill_requested_at_ms IS NULL",
                    [now, run_id],
                ).rowcount
            )
            if killing:
                events.add(
                    self._connection, run_id, "stop requested", "Stop now requested: nothing more is saved.", now
                )
            elif stopping:
                events.add(self._connection, run_id, "stop requested", "Stop and save requested.", now)
            elif stopped:
                events.add(self._connection, run_id, "stop requested", "Removed from the queue.", now)
        return existing(self._connection, run_id)

    def resume(self, run_id: str, message: str) -> Run:
        """Queue a stopped, failed or lost run again, behind all others, as the same run. message: for its event log.

        Its earlier ends are kept as events, and in its facts as "earlier": [start, end] of each attempt, in ms. Raises
        UserError if it is finished or has not ended, UnknownNameError.
        """
        now = self._connection.clock_ms()
        with self._connection.writing() as db:
            # Clear everything of the last attempt, with its nonce: the files it left must not count for the next one.
            resumed = db.execute(
                f"UPDATE runs SET status = 'queued', queue_position = {LAST_PLACE}, slot = NULL, launch_nonce = NULL,"
                " launches = 0, claimed_at_ms = NULL, started_at_ms = NULL, stop_requested_at_ms = NULL,"
                " ended_at_ms = NULL, reason = NULL, pruned_at_step = NULL, archived_at_ms = NULL,"
                " facts_json = iif(started_at_ms IS NULL, facts_json, json_set(facts_json, '$.earlier', json_insert("
                "coalesce(json_extract(facts_json, '$.earlier'), '[]'), '$[#]', json_array(started_at_ms, ended_at_ms)"
                "))) WHERE id = :id AND status IN ('stopped', 'failed', 'lost')",
                {"id": run_id},
            ).rowcount
            if resumed:
                events.add(self._connection, run_id, "resumed", message, now)
        run = existing(self._connection, run_id)
        if not resumed:
            raise UserError(not_resumable(run) or f"Run {run_id} is {run.status.value}.")
        return run

    def rename(self, run_id: str, name: str) -> Run:
        """Set the name under which a run is shown; "" means the automatic one, from model, data and seed.

        Raises ConfigError for a name that is too long, UnknownNameError.
        """
        checked = build({"name": name}).name
        with self._connection.writing() as db:
            db.execute("UPDATE runs SET name = ? WHERE id = ?", [checked, run_id])
        return existing(self._connection, run_id)

    def events(self, run_id: str) -> tuple[Event, ...]:
        """The event log of a run, oldest first. Raises UnknownNameError."""
        return events.of_run(self._connection, run_id)

    def predictions(self, run_id: str, split: str) -> tuple[Prediction, ...]:
        """The predictions of a run on a split, by clip. Raises UnknownNameError."""
        sql = (
            "SELECT clip_id, split, label, predicted, probability, label_probability, content FROM predictions"
            " WHERE run_number = ? AND split = ? ORDER BY clip_id"
        )
        return tuple(
            prediction_of(row) for row in self._connection.query(sql, [self._connection.number(run_id), split])
        )

    def clip_scores(self, run_ids: Iterable[str], split: str) -> tuple[ClipScore, ...]:
        """The number of these runs that got each clip right, for the clips that have a prediction. A clip whose sound
        was replaced between two runs counts as two."""
        sql = (
            "SELECT clip_id, label, sum(predicted = label), count(*) FROM runs JOIN predictions USING (run_number)"
            " WHERE id IN (SELECT value FROM json_each(?)) AND split = ? GROUP BY clip_id, label, content"
            " ORDER BY clip_id"
        )
        with self._connection.reading() as db:
            return tuple(map(ClipScore._make, db.execute(sql, [json.dumps(list(run_ids)), split])))

    def retries(self) -> dict[str, str]:
        """Id of each retry -> id of the failed run that it replaces, which may have been deleted since."""
        sql = "SELECT id, message AS origin FROM events JOIN runs USING (run_number) WHERE kind = ? ORDER BY run_number"
        return {row["id"]: row["origin"] for row in self._connection.query(sql, [RETRY])}


def get(connection: Connection, run_id: str) -> Run | None:
    found = connection.query("SELECT * FROM runs WHERE id = ?", [run_id])
    return run_of(found[0]) if found else None


def existing(connection: Connection, run_id: str) -> Run:
    """Raises UnknownNameError."""
    run = get(connection, run_id)
    if run is None:
        raise UnknownNameError(f"No run has the id {run_id!r}.")
    return run


def rows(connection: Connection, run_ids: Iterable[str]) -> tuple[RunRow, ...]:
    with connection.reading() as db:
        return listing.rows(db, listing.numbers_of(db, run_ids))


def rows_of(connection: Connection, run_ids: Iterable[str]) -> tuple[RunRow, ...]:
    """Raises UnknownNameError."""
    ids = list(run_ids)
    found = rows(connection, ids)
    missing = set(ids) - {row.id for row in found}
    if missing:
        raise UnknownNameError(f"No run has the id {', '.join(sorted(map(repr, missing)))}.")
    return found


def insert(
    connection: Connection,
    config: RunConfig,
    created_by: str,
    sweep_id: str | None = None,
    of: SweepRun | None = None,
    form_token: str | None = None,
    origin: Origin | None = None,
) -> str:
    """Add a queued run and return its id; for a known form_token, the id of the run that it created the first time.

    Call it within a transaction.
    """
    made = connection.db.execute("SELECT id FROM runs WHERE form_token = ?", [form_token]).fetchone()
    if made:
        return made[0]
    now = connection.clock_ms()
    row = {
        "id": connection.new_id("runs", now),
        "name": config.name,
        "wanted_device": config.device,
        "created_by": created_by,
        "now": now,
        "config": config.model_dump_json(),
        "sweep": sweep_id,
        "trial": of.trial if of else None,
        "setting": json.dumps(of.setting) if of else None,
        "token": form_token,
    }
    connection.db.execute(_INSERT_RUN, row)
    events.add(connection, row["id"], "queued", _QUEUED.get(created_by, f"Queued by {created_by}."), now)
    if origin:
        events.add(connection, row["id"], RETRY if origin.is_retry else "clone of", origin.run_id, now)
    return row["id"]


def of_form(form_token: str | None, number: int) -> str | None:
    return f"{form_token}/{number}" if form_token else None
