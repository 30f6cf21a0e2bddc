"""What was run and measured, in runs.db. The only file that speaks SQL, through sqlite-utils (with migrations, and
with metric_tables and listing, which only this file calls).

A Store is a connection: it belongs to one thread and is closed after use. Opening one costs under a millisecond.

    with Store.open(workspace) as store:
        run = store.enqueue(config)
        curve = store.curve(run.id, "train/loss")

Who may change a run's status is said at each verb; every change is one statement that checks the old status.
"""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import zip_longest
from types import TracebackType
from typing import Any

from sousa_engine.core import errors
from sousa_engine.core.config import RunConfig, build
from sousa_engine.core.errors import UnknownNameError, UserError, WorkspaceError
from sousa_engine.core.records import (
    MOST_CPU_SLOTS,
    ClipScore,
    Curve,
    Event,
    Launch,
    Listing,
    MetricPoint,
    Origin,
    Prediction,
    Progress,
    Queue,
    Run,
    RunFilter,
    RunRow,
    RunStatus,
    Summary,
    Sweep,
    SweepRun,
    SweepStatus,
    TargetSet,
    checked_note,
    checked_set_name,
    checked_tags,
)
from sousa_engine.store import listing, metric_tables, migrations, trash
from sousa_engine.workspace import Workspace
from sousa_engine.workspace.spool import SpoolBatch

_ID_LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"  # without look-alikes: 0 o, 1 i l
_SLOT_HELD = "status IN ('starting', 'running', 'stopping')"
_THESE = "(SELECT value FROM json_each(?))"  # a JSON list of ids
_NOT_PAUSED = (
    "NOT EXISTS (SELECT 1 FROM queue WHERE paused_at_ms IS NOT NULL)"
    " AND NOT EXISTS (SELECT 1 FROM sweeps WHERE sweeps.id = runs.sweep_id AND sweeps.status = 'paused')"
)


def not_resumable(run: Run) -> str:
    """Why the status of a run forbids to resume it; "" where it does not."""
    if run.status is RunStatus.FINISHED:
        return f"Run {run.id} is finished. To train longer, launch it again with more epochs."
    return "" if run.status.is_over else f"Run {run.id} is {run.status.value}: it is not over."


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Store:
    def __init__(self, db: migrations.Database, workspace: Workspace, clock_ms: Callable[[], int]):
        self._db = db
        self._clock_ms = clock_ms
        self.workspace = workspace
        listing.prepare(db)

    @classmethod
    def open(
        cls,
        workspace: Workspace,
        *,
        readonly: bool = False,
        checkpoints: bool = False,
        clock_ms: Callable[[], int] = now_ms,
    ) -> Store:
        """Raises WorkspaceError: read-only folder (unless `readonly`), newer schema, not our database."""
        db = migrations.open_database(workspace, readonly=readonly, checkpoints=checkpoints)
        store = cls(db, workspace, clock_ms)
        if not readonly and trash.found(workspace):
            with trash.alone(workspace, wait=False) as nobody_deletes:
                if nobody_deletes:
                    store._settle_trash()  # a deletion was cut short
        return store

    @classmethod
    def open_to_read(cls, workspace: Workspace) -> Store:
        """As `open`, for who only reads: a workspace that cannot be written to is read all the same."""
        try:
            return cls.open(workspace)
        except WorkspaceError:
            if not migrations.read_only(workspace):
                raise
            return cls.open(workspace, readonly=True)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Runs, for pages and the command line

    def enqueue(self, config: RunConfig, *, created_by: str = "page", form_token: str | None = None) -> Run:
        """A new QUEUED run behind all others. The supervisor does the rest: call `ensure.ensure` next.

        form_token: names a form that was sent; sent again, it is answered with the run that it made the first time.
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
        """New QUEUED runs in this order, all or none; form_token as `enqueue` has it. origins: of clones, one each."""
        with self._writing():
            ids = [
                self._enqueue(config, created_by, form_token=_of_form(form_token, number), origin=origin)
                for number, (config, origin) in enumerate(zip_longest(configs, origins))
            ]
        return tuple(self._existing(run_id) for run_id in ids)

    def run(self, run_id: str) -> Run | None:
        found = self._query("SELECT * FROM runs WHERE id = ?", [run_id])
        return _run(found[0]) if found else None

    def find(self, text: str) -> Run:
        """The run with this id, or the only one of this name, or whose id starts or ends so; "last" is the newest.

        Raises UnknownNameError, with the ids and names that come near.
        """
        if text == "last":
            newest = self.runs(limit=1)
            if not newest:
                raise UnknownNameError("There is no last run: nothing was ever queued here.")
            return newest[0]
        found = self._query("SELECT * FROM runs WHERE id = ?", [text])
        found = found or self._query(
            "SELECT * FROM runs WHERE :text != '' AND name = :text ORDER BY run_number DESC LIMIT 9", {"text": text}
        )
        found = found or self._query(
            "SELECT * FROM runs WHERE :text != '' AND (substr(id, 1, length(:text)) = :text"
            " OR substr(id, -length(:text)) = :text) ORDER BY run_number DESC LIMIT 9",
            {"text": text},
        )
        if len(found) == 1:
            return _run(found[0])
        if found:
            raise UnknownNameError(
                f"{text!r} could be any of {', '.join(row['id'] for row in found)}. Write more of it."
            )
        newest = self._query("SELECT id, name FROM runs ORDER BY run_number DESC LIMIT 200")
        if not newest:
            raise UnknownNameError(f"No run named {text!r}: nothing was ever queued here.")
        raise errors.unknown(
            "run", text, [row["id"] for row in newest] + [row["name"] for row in newest if row["name"]]
        )

    def runs(
        self,
        status: RunStatus | Collection[RunStatus] | None = None,
        limit: int | None = None,
        newest_first: bool = True,
    ) -> tuple[Run, ...]:
        wanted = [status] if isinstance(status, str) else list(status) if status is not None else list(RunStatus)
        order = "DESC" if newest_first else "ASC"
        sql = (
            f"SELECT * FROM runs WHERE status IN ({', '.join('?' * len(wanted))})"
            f" ORDER BY created_at_ms {order}, run_number {order} LIMIT ?"
        )
        return tuple(_run(row) for row in self._query(sql, [*wanted, -1 if limit is None else limit]))

    def listing(
        self,
        wanted: RunFilter | None = None,
        *,
        sort: str = "created",
        descending: bool = True,
        limit: int | None = None,
        offset: int = 0,
    ) -> Listing:
        """Lines of the list of runs, without their configs: milliseconds among 10,000. sort: one of listing.SORTS.

        Without a filter, all that are not archived. Raises UnknownNameError.
        """
        with self._reading() as db:
            found = listing.matching(db, wanted or RunFilter(), sort, descending)
            shown = found[offset:] if limit is None else found[offset : offset + limit]
            return Listing(rows=listing.rows(db, shown), total=len(found))

    def rows(self, run_ids: Iterable[str]) -> tuple[RunRow, ...]:
        """The lines of these runs, in the order given; ids of no run are left out."""
        with self._reading() as db:
            return listing.rows(db, listing.numbers_of(db, run_ids))

    def run_count(self) -> int:
        return self._query("SELECT count(*) AS n FROM listed_runs")[0]["n"]

    def outlines(self, run_ids: Iterable[str], metric: str, *, points: int = 20) -> dict[str, tuple[float | None, ...]]:
        """The metric of each run that has it, in at most `points` means over its steps; None where none was finite."""
        with self._reading() as db:
            return listing.outlines(db, run_ids, metric, points)

    def request_stop(self, run_id: str, *, at_once: bool = False) -> Run:
        """A queued run is STOPPED at once; one on a slot becomes STOPPING, and the supervisor sees to it.

        at_once: it is killed, without a checkpoint; one that is STOPPING already, too. A run that is over stays as it
        is. Raises UnknownNameError.
        """
        now = self._clock_ms()
        with self._writing() as db:
            # Each UPDATE checks the status it leaves: a supervisor that claims meanwhile wins or loses whole.
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
                self._add_event(run_id, "stop requested", "Stop now was asked for: nothing more is saved.", now)
            elif stopping:
                self._add_event(run_id, "stop requested", "Stop and save was asked for.", now)
            elif stopped:
                self._add_event(run_id, "stop requested", "Taken out of the queue.", now)
        return self._existing(run_id)

    def resume(self, run_id: str, message: str) -> Run:
        """A stopped, failed or lost run is QUEUED again, behind all others, as the same run: `launch.resume` asks.

        Its earlier ends stay as events, and in its facts as "earlier": [start, end] of each launch, in ms. Raises
        UserError if it is not over or finished, UnknownNameError.
        """
        now = self._clock_ms()
        with self._writing() as db:
            # All that belongs to the launch before goes, its nonce first: no note of it counts for the next one.
            resumed = db.execute(
                f"UPDATE runs SET status = 'queued', queue_position = {_LAST_PLACE}, slot = NULL, launch_nonce = NULL,"
                " launches = 0, claimed_at_ms = NULL, started_at_ms = NULL, stop_requested_at_ms = NULL,"
                " ended_at_ms = NULL, reason = NULL, pruned_at_step = NULL, archived_at_ms = NULL,"
                " facts_json = iif(started_at_ms IS NULL, facts_json, json_set(facts_json, '$.earlier', json_insert("
                "coalesce(json_extract(facts_json, '$.earlier'), '[]'), '$[#]', json_array(started_at_ms, ended_at_ms)"
                "))) WHERE id = :id AND status IN ('stopped', 'failed', 'lost')",
                {"id": run_id},
            ).rowcount
            if resumed:
                self._add_event(run_id, "resumed", message, now)
        run = self._existing(run_id)
        if not resumed:
            raise UserError(not_resumable(run) or f"Run {run_id} is {run.status.value}.")
        return run

    def rename(self, run_id: str, name: str) -> Run:
        """Give a run another name to be shown by; "" is the one made of model, data and seed.

        Raises ConfigError for a name that is too long, UnknownNameError.
        """
        checked = build({"name": name}).name
        with self._writing() as db:
            db.execute("UPDATE runs SET name = ? WHERE id = ?", [checked, run_id])
        return self._existing(run_id)

    # What people say of runs, and deleting

    def tags(self) -> dict[str, int]:
        """Every tag, in alphabetical order, and how many runs have it."""
        with self._reading() as db:
            return listing.tags(db)

    def set_tags(self, run_id: str, tags: Collection[str]) -> Run:
        """Exactly these. Raises UserError for a text that cannot be a tag, UnknownNameError."""
        wanted = checked_tags(tags)
        self._retag([run_id], lambda old: wanted)
        return self._existing(run_id)

    def add_tags(self, run_ids: Iterable[str], tags: Collection[str]) -> None:
        """Raises UserError for a text that cannot be a tag, UnknownNameError; nothing is changed then."""
        more = checked_tags(tags)
        self._retag(run_ids, lambda old: checked_tags([*old, *more]))

    def remove_tags(self, run_ids: Iterable[str], tags: Collection[str]) -> None:
        """What a run does not have, it does not lose. Raises UnknownNameError; nothing is changed then."""
        less = {tag.strip() for tag in tags}
        self._retag(run_ids, lambda old: tuple(tag for tag in old if tag not in less))

    def set_note(self, run_id: str, text: str) -> Run:
        """ "" for none. Raises UserError if it is too long, UnknownNameError."""
        note = checked_note(text)
        with self._writing() as db:
            db.execute("UPDATE runs SET note = ? WHERE id = ?", [note, run_id])
        return self._existing(run_id)

    def archive(self, run_ids: Iterable[str]) -> None:
        """Out of the lists, and kept. Raises UnknownNameError; UserError for a run that is not over. All or none."""
        ids = list(run_ids)
        with self._writing() as db:
            self._check_over(ids, "archived")
            db.execute(
                f"UPDATE runs SET archived_at_ms = ? WHERE id IN {_THESE} AND archived_at_ms IS NULL",
                [self._clock_ms(), json.dumps(ids)],
            )

    def unarchive(self, run_ids: Iterable[str]) -> None:
        with self._writing() as db:
            db.execute(f"UPDATE runs SET archived_at_ms = NULL WHERE id IN {_THESE}", [json.dumps(list(run_ids))])

    def delete(self, run_ids: Iterable[str]) -> None:
        """Remove runs, all that was measured of them, and their folders; all of them or none.

        Raises UnknownNameError; UserError for a run that is not over, or whose sweep is not: it would train it again.
        Cut short at any point, it is made whole where the store is opened next: see trash.py.
        """
        ids = list(dict.fromkeys(run_ids))
        with trash.alone(self.workspace, wait=True):
            self._check_deletable(ids)
            try:
                trash.put_in(self.workspace, ids)
                with self._writing() as db:
                    self._check_deletable(ids)  # again: meanwhile a sweep may have been taken up
                    of_these = f"run_number IN (SELECT run_number FROM runs WHERE id IN {_THESE})"
                    for table in ("events", "predictions", "runs"):  # all else goes with runs
                        db.execute(f"DELETE FROM {table} WHERE {of_these}", [json.dumps(ids)])
            finally:
                self._settle_trash()

    def events(self, run_id: str) -> tuple[Event, ...]:
        """Oldest first."""
        sql = "SELECT at_ms, kind, message FROM events WHERE run_number = ? ORDER BY at_ms, event_number"
        return tuple(Event(**row) for row in self._query(sql, [self._number(run_id)]))

    def predictions(self, run_id: str, split: str) -> tuple[Prediction, ...]:
        sql = (
            "SELECT clip_id, split, label, predicted, probability, label_probability FROM predictions"
            " WHERE run_number = ? AND split = ? ORDER BY clip_id"
        )
        return tuple(_prediction(row) for row in self._query(sql, [self._number(run_id), split]))

    def clip_scores(self, run_ids: Iterable[str], split: str) -> tuple[ClipScore, ...]:
        """How many of these runs got each clip right, by clip; clips that none of them was asked are left out."""
        sql = (
            "SELECT clip_id, label, sum(predicted = label), count(*) FROM runs JOIN predictions USING (run_number)"
            " WHERE id IN (SELECT value FROM json_each(?)) AND split = ? GROUP BY clip_id, label ORDER BY clip_id"
        )
        with self._reading() as db:
            return tuple(map(ClipScore._make, db.execute(sql, [json.dumps(list(run_ids)), split])))

    def retries(self) -> dict[str, str]:
        """Id of each run that is the retry of a failed one -> id of that one, which may have been deleted since."""
        sql = "SELECT id, message AS origin FROM events JOIN runs USING (run_number) WHERE kind = ? ORDER BY run_number"
        return {row["id"]: row["origin"] for row in self._query(sql, [_RETRY])}

    # Metrics, for reading

    def metric_names(self, run_id: str) -> tuple[str, ...]:
        """By name, without those of single modules: see `updates`."""
        sql = (
            "SELECT metric FROM metric_summaries JOIN metric_names USING (metric_number)"
            f" WHERE run_number = ? AND {metric_tables.LISTED} ORDER BY metric"
        )
        return tuple(row["metric"] for row in self._query(sql, [self._number(run_id)]))

    def curve(
        self, run_id: str, metric: str, *, first: int | None = None, last: int | None = None, max_points: int = 500
    ) -> Curve:
        """The metric over the steps first..last, in at most about `max_points` buckets of a power of two of steps.

        A bucket's step is the first one in it with a point; mean, low and high are None where nothing was finite.
        A metric the run does not have is an empty curve.
        """
        with self._reading() as db:
            return metric_tables.curve(db, self._number(run_id), metric, first=first, last=last, max_points=max_points)

    def moments(self, run_id: str, metric: str, steps: Iterable[int]) -> dict[int, int]:
        """Step -> when its value of this metric was measured, in ms since 1970; steps without one are not in it."""
        with self._reading() as db:
            return metric_tables.moments(db, self._number(run_id), metric, steps)

    def summaries(self, run_ids: Iterable[str]) -> dict[str, dict[str, Summary]]:
        """Last and best value of every metric (`metric_names`) of every run asked for. nan and inf are None here."""
        found: dict[str, dict[str, Summary]] = {run_id: {} for run_id in run_ids}
        for row in self._query(metric_tables.SUMMARIES, [json.dumps(list(found))]):
            run_id = row.pop("id")
            found[run_id][row["metric"]] = Summary(**row)
        return found

    def updates(self, run_id: str, step: int | None = None) -> tuple[MetricPoint, ...]:
        """How far training had moved each target by this step, or by the last one that was measured: a point each.

        metric: "update/<path of the module>". Empty where nothing was measured then.
        """
        found = self._query(metric_tables.UPDATES_AT, {"run": self._number(run_id), "step": step})
        return tuple(MetricPoint(**{**row, "value": float(row["value"])}) for row in found)

    def first_divergence(self, run_id: str) -> tuple[str, int] | None:
        """The metric that was the first to be nan or inf, and the step."""
        found = self._query(
            "SELECT metric, first_not_finite_step AS step FROM metric_summaries JOIN metric_names USING (metric_number)"
            f" WHERE run_number = ? AND first_not_finite_step IS NOT NULL AND {metric_tables.LISTED}"
            " ORDER BY step, metric LIMIT 1",
            [self._number(run_id)],
        )
        return (found[0]["metric"], found[0]["step"]) if found else None

    # The queue

    def queue(self) -> Queue:
        (row,) = self._query("SELECT paused_at_ms, cpu_slots FROM queue")
        return Queue(**row)

    def queued(self, limit: int | None = None) -> tuple[RunRow, ...]:
        """The runs that wait, the next one first: each slot takes the first that may use it."""
        sql = f"SELECT run_number FROM runs {_IN_QUEUE} LIMIT ?"
        with self._reading() as db:
            numbers = [number for (number,) in db.execute(sql, [-1 if limit is None else limit])]
            return listing.rows(db, numbers)

    def queued_count(self) -> int:
        return self._query("SELECT count(*) AS n FROM runs WHERE status = 'queued'")[0]["n"]

    def queued_at_ms(self, run_id: str) -> int:
        """When it was queued; of a run that was resumed, when it was last. Raises UnknownNameError."""
        sql = (
            "SELECT coalesce(max(at_ms), created_at_ms) AS at_ms FROM runs LEFT JOIN events"
            " ON events.run_number = runs.run_number AND kind = 'resumed' WHERE runs.run_number = ?"
        )
        return self._query(sql, [self._number(run_id)])[0]["at_ms"]

    def move(self, run_id: str, to: int) -> int:
        """Give a queued run another place in the queue, 1 is the next one; returns the place it has now.

        Raises UnknownNameError; UserError for a run that does not wait.
        """
        return self._move(run_id, lambda place: to)

    def move_by(self, run_id: str, places: int) -> int:
        """-1: one place forward, 1: one back; no further than the ends. Returns and raises as `move` does."""
        return self._move(run_id, lambda place: place + places)

    def pause_queue(self) -> bool:
        """Nothing is claimed any more, what trains goes on. False if it was paused already."""
        with self._writing() as db:
            sql = "UPDATE queue SET paused_at_ms = ? WHERE paused_at_ms IS NULL"
            return db.execute(sql, [self._clock_ms()]).rowcount > 0

    def resume_queue(self) -> bool:
        """False if it was not paused. Call `ensure.ensure` next."""
        with self._writing() as db:
            return db.execute("UPDATE queue SET paused_at_ms = NULL WHERE paused_at_ms IS NOT NULL").rowcount > 0

    def set_cpu_slots(self, count: int) -> None:
        """How many runs may train on the CPU beside each other. Raises UserError."""
        if not 1 <= count <= MOST_CPU_SLOTS:
            raise UserError(f"{count} CPU slots will not do: 1 to {MOST_CPU_SLOTS} are possible.")
        with self._writing() as db:
            db.execute("UPDATE queue SET cpu_slots = ?", [count])

    # Sweeps

    def add_sweep(
        self,
        name: str,
        spec: Mapping[str, Any],
        runs: Iterable[SweepRun],
        *,
        created_by: str,
        form_token: str | None = None,
    ) -> Sweep:
        """A new RUNNING sweep and the runs it begins with, all or nothing; form_token as `enqueue` has it."""
        now = self._clock_ms()
        with self._writing() as db:
            made = db.execute("SELECT id FROM sweeps WHERE form_token = ?", [form_token]).fetchone()
            sweep_id = made[0] if made else self._new_id("sweeps", now)
            if not made:
                db.execute(
                    "INSERT INTO sweeps (id, name, status, spec_json, created_by, created_at_ms, form_token)"
                    " VALUES (?, ?, 'running', ?, ?, ?, ?)",
                    [sweep_id, name, json.dumps(spec), created_by, now, form_token],
                )
                for run in runs:
                    self._enqueue(run.config, created_by, sweep_id, run)
        return self._existing_sweep(sweep_id)

    def extend_sweep(
        self,
        sweep_id: str,
        runs: Iterable[SweepRun],
        *,
        created_by: str,
        spec: Mapping[str, Any] | None = None,
        form_token: str | None = None,
    ) -> tuple[str, ...]:
        """More runs for a sweep (and what it then asks); one that was over is RUNNING again. Returns their ids.

        form_token as `enqueue_all` has it.
        """
        with self._writing() as db:
            changed = db.execute(
                "UPDATE sweeps SET spec_json = coalesce(?, spec_json), ended_at_ms = NULL, reason = NULL,"
                " status = iif(status = 'paused', 'paused', 'running') WHERE id = ?",
                [None if spec is None else json.dumps(spec), sweep_id],
            ).rowcount
            if not changed:
                raise UnknownNameError(f"No sweep has the id {sweep_id!r}.")
            return tuple(
                self._enqueue(run.config, created_by, sweep_id, run, form_token=_of_form(form_token, number))
                for number, run in enumerate(runs)
            )

    def sweep(self, sweep_id: str) -> Sweep | None:
        found = self._query("SELECT * FROM sweeps WHERE id = ?", [sweep_id])
        return _sweep(found[0]) if found else None

    def sweeps(self, status: Collection[SweepStatus] | None = None) -> tuple[Sweep, ...]:
        """Newest first."""
        wanted = list(SweepStatus if status is None else status)
        marks = ", ".join("?" * len(wanted))
        sql = f"SELECT * FROM sweeps WHERE status IN ({marks}) ORDER BY created_at_ms DESC, id DESC"
        return tuple(_sweep(row) for row in self._query(sql, wanted))

    def find_sweep(self, text: str) -> Sweep:
        """The sweep with this id, or the only one whose id starts or ends so, or whose name it is; "last": the newest.

        Raises UnknownNameError, with the ids that come near.
        """
        every = self.sweeps()
        if not every:
            raise UnknownNameError("There is no sweep yet. Start one: python -m sousa_engine sweep --help")
        if text == "last":
            return every[0]
        found = [sweep for sweep in every if text in (sweep.id, sweep.name)]
        found = found or [s for s in every if text and (s.id.startswith(text) or s.id.endswith(text))]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownNameError(f"{text!r} could be any of {', '.join(s.id for s in found[:9])}. Write more of it.")
        raise errors.unknown("sweep", text, [s.id for s in every] + [s.name for s in every if s.name])

    def sweep_runs(self, sweep_id: str) -> tuple[Run, ...]:
        """By trial, then in the order they were queued."""
        sql = "SELECT * FROM runs WHERE sweep_id = ? ORDER BY trial_number, run_number"
        return tuple(_run(row) for row in self._query(sql, [sweep_id]))

    def open_run_count(self, sweep_id: str) -> int:
        """Runs of a sweep that are not over."""
        sql = "SELECT count(*) AS n FROM runs WHERE sweep_id = ? AND ended_at_ms IS NULL"
        return self._query(sql, [sweep_id])[0]["n"]

    def set_sweep_status(
        self, sweep_id: str, status: SweepStatus, *, leaving: Collection[SweepStatus], reason: str | None = None
    ) -> bool:
        """Compare and set; False if its status was none of `leaving`. The queued runs of a paused sweep wait."""
        ended = self._clock_ms() if status.is_over else None
        with self._writing() as db:
            marks = ", ".join("?" * len(leaving))
            return (
                db.execute(
                    f"UPDATE sweeps SET status = ?, ended_at_ms = ?, reason = ? WHERE id = ? AND status IN ({marks})",
                    [status.value, ended, reason, sweep_id, *leaving],
                ).rowcount
                > 0
            )

    def prune(self, run_id: str, step: int, reason: str) -> bool:
        """A sweep gives a run up: it becomes STOPPING, and its reason stays. False if it does not run any more."""
        return self._change(
            run_id,
            "UPDATE runs SET status = 'stopping', stop_requested_at_ms = :now, pruned_at_step = :step, reason = :reason"
            " WHERE id = :id AND status IN ('starting', 'running')",
            {"now": self._clock_ms(), "step": step, "reason": reason},
            Event(at_ms=self._clock_ms(), kind="pruned", message=reason),
        )

    # Target sets

    def save_target_set(self, name: str, variant: str, paths: Iterable[str], head: str) -> TargetSet:
        """A set of the same name for the same variant is replaced. Raises UserError for what cannot be a name."""
        row = {
            "name": checked_set_name(name),
            "variant": variant,
            "paths_json": json.dumps(list(paths)),
            "head": head,
            "saved_at_ms": self._clock_ms(),
        }
        with self._writing() as db:
            db.table("target_sets").insert(row, replace=True)
        return _target_set(row)

    def target_sets(self, variant: str | None = None) -> tuple[TargetSet, ...]:
        """Newest first."""
        sql = "SELECT * FROM target_sets WHERE :variant IS NULL OR variant = :variant ORDER BY saved_at_ms DESC, name"
        return tuple(_target_set(row) for row in self._query(sql, {"variant": variant}))

    def delete_target_set(self, name: str, variant: str) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM target_sets WHERE name = ? AND variant = ?", [name, variant])

    # The supervisor's verbs

    def live(self) -> tuple[Run, ...]:
        """The runs that hold a slot: starting, running or stopping. At most one a slot."""
        return tuple(_run(row) for row in self._query(f"SELECT * FROM runs WHERE {_SLOT_HELD} ORDER BY slot"))

    def waiting_devices(self) -> tuple[str, ...]:
        """The devices that queued runs ask for, each once; none where the queue is empty or paused.

        The runs of a paused sweep do not wait either.
        """
        sql = f"SELECT DISTINCT wanted_device FROM runs WHERE status = 'queued' AND {_NOT_PAUSED}"
        return tuple(row["wanted_device"] for row in self._query(sql))

    def claim(self, slot: str, nonce: str, devices: Collection[str] | None = None) -> Run | None:
        """The next queued run that may use `slot`, now STARTING on it; None if there is none or the slot is held.

        devices: what such a run may have asked for; the slot itself or "auto" if not said.
        """
        wanted = [slot, "auto"] if devices is None else list(devices)
        with self._writing() as db:
            # One UPDATE, not atomic(): a deferred BEGIN cannot upgrade once another writer committed.
            rows = db.execute(
                "UPDATE runs SET status = 'starting', slot = ?, launch_nonce = ?, claimed_at_ms = ?,"
                " stop_requested_at_ms = NULL, kill_requested_at_ms = NULL,"  # of an earlier launch
                " launches = launches + 1 WHERE run_number = (SELECT run_number FROM runs WHERE status = 'queued'"
                f" AND wanted_device IN ({', '.join('?' * len(wanted))}) AND {_NOT_PAUSED}"
                " ORDER BY queue_position, run_number LIMIT 1)"
                f" AND NOT EXISTS (SELECT 1 FROM runs WHERE slot = ? AND {_SLOT_HELD}) RETURNING id",
                [slot, nonce, self._clock_ms(), *wanted, slot],
            ).fetchall()
            if rows:
                self._add_event(rows[0][0], "claimed", f"Claimed for {slot}.", self._clock_ms())
        return self.run(rows[0][0]) if rows else None

    def launch(self, run_id: str) -> Launch:
        """Raises UnknownNameError."""
        sql = "SELECT launch_nonce AS nonce, spool_bytes_ingested AS spool_offset FROM runs WHERE id = ?"
        found = self._query(sql, [run_id])
        if not found:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        return Launch(**found[0])

    def mark_running(self, run_id: str, nonce: str, *, started_at_ms: int) -> bool:
        """starting -> running, once the keeper of this launch was seen. A stop asked for meanwhile stays."""
        return self._change(
            run_id,
            "UPDATE runs SET status = iif(status = 'starting', 'running', status), started_at_ms = :started"
            " WHERE id = :id AND launch_nonce = :nonce AND started_at_ms IS NULL"
            " AND status IN ('starting', 'stopping')",
            {"nonce": nonce, "started": started_at_ms},
            Event(at_ms=started_at_ms, kind="started", message="The keeper of its trainer was seen."),
        )

    def requeue(self, run_id: str, nonce: str, message: str) -> bool:
        """starting -> queued: the launch came to nothing."""
        return self._change(
            run_id,
            "UPDATE runs SET status = 'queued', slot = NULL, claimed_at_ms = NULL"
            " WHERE id = :id AND launch_nonce = :nonce AND status = 'starting'",
            {"nonce": nonce},
            Event(at_ms=self._clock_ms(), kind="queued again", message=message),
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
        """The end of a run: of launch `nonce`, or (nonce None) of a run still queued. False if it was over already."""
        assert status.is_over
        return self._change(
            run_id,
            "UPDATE runs SET status = :status, ended_at_ms = :ended,"
            " reason = iif(:status = 'stopped' AND pruned_at_step IS NOT NULL, reason, :reason) WHERE id = :id AND"
            f" iif(:nonce IS NULL, status = 'queued', launch_nonce = :nonce AND {_SLOT_HELD})",
            {"status": status, "reason": reason, "nonce": nonce, "ended": ended_at_ms or self._clock_ms()},
            *events,
            Event(at_ms=self._clock_ms(), kind=status.value, message=reason or "The trainer finished."),
        )

    def ingest(self, run_id: str, batch: SpoolBatch) -> bool:
        """Take a batch whole, and remember its end: points, progress, events and facts in one transaction.

        False, and nothing changes, if the batch does not start where the last one ended: each line counts once.
        """
        with self._writing(durable=False) as db:
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
        """Its spool became shorter than what was taken of it. Only between two launches, while nobody writes there."""
        lost = "The end of its spool is gone, and was taken in before: nothing measured is missing."
        self._change(
            run_id,
            "UPDATE runs SET spool_bytes_ingested = :offset WHERE id = :id AND spool_bytes_ingested > :offset",
            {"offset": offset},
            Event(at_ms=self._clock_ms(), kind="storage", message=lost),
        )

    def save_predictions(self, run_id: str, predictions: Iterable[Prediction]) -> None:
        """Replaces those of the same run."""
        number = self._number(run_id)
        with self._writing() as db:
            db.execute("DELETE FROM predictions WHERE run_number = ?", [number])
            db.table("predictions").insert_all(({"run_number": number, **vars(p)} for p in predictions), replace=True)

    def add_event(self, run_id: str, kind: str, message: str) -> None:
        with self._writing():
            self._add_event(run_id, kind, message, self._clock_ms())

    def add_events_once(self, run_id: str, events: Iterable[Event]) -> None:
        """Those that the run does not have yet, by time, kind and message."""
        with self._writing() as db:
            for event in events:
                known = db.execute(
                    "SELECT 1 FROM events JOIN runs USING (run_number) WHERE id = ? AND at_ms = ? AND kind = ?"
                    " AND message = ?",
                    [run_id, event.at_ms, event.kind, event.message],
                ).fetchone()
                if not known:
                    self._add_event(run_id, event.kind, event.message, event.at_ms)

    def checkpoint_wal(self) -> None:
        """Fold the WAL into runs.db as far as readers allow."""
        self._query("PRAGMA wal_checkpoint(TRUNCATE)")

    # Inside

    def _enqueue(
        self,
        config: RunConfig,
        created_by: str,
        sweep_id: str | None = None,
        of: SweepRun | None = None,
        form_token: str | None = None,
        origin: Origin | None = None,
    ) -> str:
        """Within a transaction. The run of a form that was sent before is the one it made then."""
        made = self._db.execute("SELECT id FROM runs WHERE form_token = ?", [form_token]).fetchone()
        if made:
            return made[0]
        now = self._clock_ms()
        row = {
            "id": self._new_id("runs", now),
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
        self._db.execute(_INSERT_RUN, row)
        self._add_event(row["id"], "queued", f"Queued by the {created_by}.", now)
        if origin:
            self._add_event(row["id"], _RETRY if origin.is_retry else "clone of", origin.run_id, now)
        return row["id"]

    def _move(self, run_id: str, place_of: Callable[[int], int]) -> int:
        """place_of: the place it has, from 1 -> the place it is to have."""
        with self._writing() as db:
            before = db.execute(f"SELECT run_number, queue_position, id FROM runs {_IN_QUEUE}").fetchall()
            ids = [row[2] for row in before]
            if run_id not in ids:
                status = self._existing(run_id).status.value
                raise UserError(f"Run {run_id} is {status}: only a run that waits in the queue can be moved.")
            place = min(max(1, place_of(1 + ids.index(run_id))), len(ids))
            numbers = [row[0] for row in before if row[2] != run_id]
            numbers.insert(place - 1, before[ids.index(run_id)][0])
            held = {number: position for number, position, _ in before}
            changed, last = [], 0
            for number, (_, position, _) in zip(numbers, before, strict=True):
                last = max(position, last + 1)  # places that two runs share, as of old, are drawn apart
                if held[number] != last:
                    changed.append((last, number))
            db.conn.executemany("UPDATE runs SET queue_position = ? WHERE run_number = ?", changed)
            if changed:
                self._add_event(run_id, "moved", f"Moved to place {place} of the queue.", self._clock_ms())
        return place

    def _new_id(self, table: str, at_ms: int) -> str:
        found = _new_id(at_ms)
        while self._db.execute(f"SELECT 1 FROM {table} WHERE id = ?", [found]).fetchone():
            found = _new_id(at_ms)  # alike in one second: one in 900,000
        return found

    def _retag(self, run_ids: Iterable[str], change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        with self._writing() as db:
            for run in self._rows_of(run_ids):
                tags = json.dumps(change(run.tags), ensure_ascii=False)
                db.execute("UPDATE runs SET tags_json = ? WHERE id = ?", [tags, run.id])

    def _rows_of(self, run_ids: Iterable[str]) -> tuple[RunRow, ...]:
        """Raises UnknownNameError."""
        ids = list(run_ids)
        found = self.rows(ids)
        missing = set(ids) - {row.id for row in found}
        if missing:
            raise UnknownNameError(f"No run has the id {', '.join(sorted(map(repr, missing)))}.")
        return found

    def _check_over(self, run_ids: Iterable[str], what: str) -> None:
        alive = [row for row in self._rows_of(run_ids) if not row.status.is_over]
        if alive:
            named = ", ".join(f"{row.id} is {row.status.value}" for row in alive[:5])
            more = f" and {len(alive) - 5} more" if len(alive) > 5 else ""
            raise UserError(f"Only a run that is over can be {what}: {named}{more}. Stop it first.")

    def _check_deletable(self, run_ids: Collection[str]) -> None:
        self._check_over(run_ids, "deleted")
        found = self._query(
            "SELECT runs.id, sweeps.id AS sweep, sweeps.status FROM runs JOIN sweeps ON sweeps.id = runs.sweep_id"
            f" WHERE runs.id IN {_THESE} AND sweeps.ended_at_ms IS NULL LIMIT 1",
            [json.dumps(list(run_ids))],
        )
        if found:
            raise UserError(
                f"{found[0]['id']} belongs to sweep {found[0]['sweep']}, which is {found[0]['status']} and could train "
                "it again. Stop the sweep first, or wait for its end."
            )

    def _settle_trash(self) -> None:
        """By its row, each folder in the trash goes back or goes for good. Only while nobody else deletes."""
        lying = trash.found(self.workspace)
        kept = {row.id for row in self.rows(lying)}
        trash.put_back(self.workspace, kept)
        trash.empty(self.workspace, [run_id for run_id in lying if run_id not in kept])

    def _existing_sweep(self, sweep_id: str) -> Sweep:
        sweep = self.sweep(sweep_id)
        if sweep is None:
            raise UnknownNameError(f"No sweep has the id {sweep_id!r}.")
        return sweep

    def _existing(self, run_id: str) -> Run:
        run = self.run(run_id)
        if run is None:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        return run

    def _number(self, run_id: str) -> int:
        found = self._query("SELECT run_number FROM runs WHERE id = ?", [run_id])
        if not found:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        return found[0]["run_number"]

    def _change(self, run_id: str, sql: str, values: Mapping[str, Any], *events: Event) -> bool:
        """Compare and set: the statement says which state it leaves; the events are written only if it did."""
        with self._writing() as db:
            changed = db.execute(sql, {"id": run_id, **values}).rowcount > 0
            for event in events if changed else ():
                self._add_event(run_id, event.kind, event.message, event.at_ms)
        return changed

    def _add_event(self, run_id: str, kind: str, message: str, at_ms: int) -> None:
        self._db.execute(
            "INSERT INTO events (run_number, at_ms, kind, message)"
            " SELECT run_number, :at, :kind, :message FROM runs WHERE id = :id",
            {"id": run_id, "at": at_ms, "kind": kind, "message": message},
        )

    def _query(self, sql: str, values: Any = ()) -> list[dict[str, Any]]:
        with self._reading() as db:
            return list(db.query(sql, values))

    @contextmanager
    def _reading(self) -> Iterator[migrations.Database]:
        try:
            yield self._db
        except sqlite3.DatabaseError as error:
            raise migrations.explain(error, self.workspace.db) from error

    @contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[migrations.Database]:
        """BEGIN IMMEDIATE: waits for its turn, then cannot fail half-way for another writer's sake.

        durable: on disk before it returns. Metrics need not be: their spool still has them.
        """
        db = self._db
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


_OF_THE_FILE = sqlite3.DatabaseError
_OF_THE_VALUES = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError)

_RETRY = "retry of"  # an event of a clone; its message is the id of the run that failed
_IN_QUEUE = "WHERE status = 'queued' ORDER BY queue_position, run_number"
_LAST_PLACE = "coalesce((SELECT max(queue_position) FROM runs), 0) + 1"
_INSERT_RUN = f"""
INSERT INTO runs (id, name, status, wanted_device, queue_position, created_by, created_at_ms, config_json,
                  sweep_id, trial_number, setting_json, form_token)
VALUES (:id, :name, 'queued', :wanted_device, {_LAST_PLACE}, :created_by,
        :now, :config, :sweep, :trial, :setting, :token)
"""


def _run(row: Mapping[str, Any]) -> Run:
    progress = json.loads(row["progress_json"]) if row["progress_json"] else None
    return Run(
        id=row["id"],
        config=_config(row["config_json"], row["name"]),
        status=RunStatus(row["status"]),
        created_at_ms=row["created_at_ms"],
        started_at_ms=row["started_at_ms"],
        ended_at_ms=row["ended_at_ms"],
        device=row["slot"],
        reason=row["reason"],
        weights_label=row["weights_label"],
        progress=Progress(**progress) if progress else None,
        facts=json.loads(row["facts_json"]),
        launches=row["launches"],
        stop_requested_at_ms=row["stop_requested_at_ms"],
        kill_requested_at_ms=row["kill_requested_at_ms"],
        sweep_id=row["sweep_id"],
        trial=row["trial_number"],
        setting=json.loads(row["setting_json"]) if row["setting_json"] else {},
        pruned_at_step=row["pruned_at_step"],
        tags=tuple(json.loads(row["tags_json"])),
        note=row["note"],
        archived_at_ms=row["archived_at_ms"],
    )


def _sweep(row: Mapping[str, Any]) -> Sweep:
    return Sweep(
        id=row["id"],
        name=row["name"],
        spec=json.loads(row["spec_json"]),
        status=SweepStatus(row["status"]),
        created_at_ms=row["created_at_ms"],
        ended_at_ms=row["ended_at_ms"],
        reason=row["reason"],
    )


@lru_cache(maxsize=4096)
def _config(text: str, name: str) -> RunConfig:
    """Frozen, so that rows share it: validating 73 targets each would cost a list of 1,000 runs 0.1 s."""
    config = RunConfig.model_validate_json(text)
    return config if config.name == name else config.model_copy(update={"name": name})


def _prediction(row: Mapping[str, Any]) -> Prediction:
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items()}
    return Prediction(**values)


def _target_set(row: Mapping[str, Any]) -> TargetSet:
    return TargetSet(
        name=row["name"],
        variant=row["variant"],
        paths=tuple(json.loads(row["paths_json"])),
        head=row["head"],
        saved_at_ms=row["saved_at_ms"],
    )


def _of_form(form_token: str | None, number: int) -> str | None:
    return f"{form_token}/{number}" if form_token else None


def _new_id(at_ms: int) -> str:
    """Sortable, readable in local time, and safe in a URL and in a file name: 260131-142305-k7mq."""
    tail = "".join(secrets.choice(_ID_LETTERS) for _ in range(4))
    return f"{time.strftime('%y%m%d-%H%M%S', time.localtime(at_ms / 1000))}-{tail}"
