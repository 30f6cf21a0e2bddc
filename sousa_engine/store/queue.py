"""The queue of runs: its order, its pause and the number of CPU slots."""

from __future__ import annotations

from collections.abc import Callable

from sousa_engine.core.errors import UserError
from sousa_engine.core.records import MOST_CPU_SLOTS, QueueSettings, Run, RunRow
from sousa_engine.store import events, listing
from sousa_engine.store.connection import Connection
from sousa_engine.store.rows import run_of
from sousa_engine.store.runs import SLOT_HELD, existing

NOT_PAUSED = (
    "NOT EXISTS (SELECT 1 FROM queue WHERE paused_at_ms IS NOT NULL)"
    " AND NOT EXISTS (SELECT 1 FROM sweeps WHERE sweeps.id = runs.sweep_id AND sweeps.status = 'paused')"
)
IN_QUEUE = "WHERE status = 'queued' ORDER BY queue_position, run_number"


class Queue:
    """`store.queue`: lists and reorders the waiting runs, pauses the queue and sets its CPU slots."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def settings(self) -> QueueSettings:
        (row,) = self._connection.query("SELECT paused_at_ms, cpu_slots FROM queue")
        return QueueSettings(**row)

    def waiting(self, limit: int | None = None) -> tuple[RunRow, ...]:
        """The queued runs in order; each slot takes the first one that fits it."""
        sql = f"SELECT run_number FROM runs {IN_QUEUE} LIMIT ?"
        with self._connection.reading() as db:
            numbers = [number for (number,) in db.execute(sql, [-1 if limit is None else limit])]
            return listing.rows(db, numbers)

    def live(self) -> tuple[Run, ...]:
        """The runs that hold a slot: starting, running or stopping. At most one per slot."""
        return tuple(
            run_of(row) for row in self._connection.query(f"SELECT * FROM runs WHERE {SLOT_HELD} ORDER BY slot")
        )

    def waiting_devices(self) -> tuple[str, ...]:
        """The devices requested by queued runs, each once; none if the queue is empty or paused.

        Runs of paused sweeps do not count.
        """
        sql = f"SELECT DISTINCT wanted_device FROM runs WHERE status = 'queued' AND {NOT_PAUSED}"
        return tuple(row["wanted_device"] for row in self._connection.query(sql))

    def count(self) -> int:
        return self._connection.query("SELECT count(*) AS n FROM runs WHERE status = 'queued'")[0]["n"]

    def queued_at_ms(self, run_id: str) -> int:
        """When a run was last queued, by its creation or by a resume, in ms since 1970. Raises UnknownNameError."""
        sql = (
            "SELECT coalesce(max(at_ms), created_at_ms) AS at_ms FROM runs LEFT JOIN events"
            " ON events.run_number = runs.run_number AND kind = 'resumed' WHERE runs.run_number = ?"
        )
        return self._connection.query(sql, [self._connection.number(run_id)])[0]["at_ms"]

    def move(self, run_id: str, to: int) -> int:
        """Move a queued run to place `to` (1: next) and return its new place, which is within the queue's length.

        Raises UnknownNameError; UserError for a run that is not queued.
        """
        return self._move(run_id, lambda place: to)

    def move_by(self, run_id: str, places: int) -> int:
        """Move a queued run forward (-1) or back (1), no further than the ends. Returns and raises like `move`."""
        return self._move(run_id, lambda place: place + places)

    def pause(self) -> bool:
        """Start no new runs; active runs continue. False if the queue was already paused."""
        with self._connection.writing() as db:
            sql = "UPDATE queue SET paused_at_ms = ? WHERE paused_at_ms IS NULL"
            return db.execute(sql, [self._connection.clock_ms()]).rowcount > 0

    def resume(self) -> bool:
        """Start queued runs again. False if the queue was not paused. The caller then starts a supervisor."""
        with self._connection.writing() as db:
            return db.execute("UPDATE queue SET paused_at_ms = NULL WHERE paused_at_ms IS NOT NULL").rowcount > 0

    def set_cpu_slots(self, count: int) -> None:
        """Set how many runs may train on the CPU at the same time. Raises UserError."""
        if not 1 <= count <= MOST_CPU_SLOTS:
            raise UserError(f"The number of CPU slots must be 1 to {MOST_CPU_SLOTS}; {count} is out of range.")
        with self._connection.writing() as db:
            db.execute("UPDATE queue SET cpu_slots = ?", [count])

    def _move(self, run_id: str, place_of: Callable[[int], int]) -> int:
        """place_of: current place (from 1) -> wanted place."""
        with self._connection.writing() as db:
            before = db.execute(f"SELECT run_number, queue_position, id FROM runs {IN_QUEUE}").fetchall()
            ids = [row[2] for row in before]
            if run_id not in ids:
                status = existing(self._connection, run_id).status.value
                raise UserError(f"Run {run_id} is {status}: only queued runs can be moved.")
            place = min(max(1, place_of(1 + ids.index(run_id))), len(ids))
            numbers = [row[0] for row in before if row[2] != run_id]
            numbers.insert(place - 1, before[ids.index(run_id)][0])
            held = {number: position for number, position, _ in before}
            changed, last = [], 0
            for number, (_, position, _) in zip(numbers, before, strict=True):
                last = max(position, last + 1)  # old databases may have two runs in one place: separate them
                if held[number] != last:
                    changed.append((last, number))
            db.conn.executemany("UPDATE runs SET queue_position = ? WHERE run_number = ?", changed)
            if changed:
                events.add(
                    self._connection,
                    run_id,
                    "moved",
                    f"Moved to place {place} in the queue.",
                    self._connection.clock_ms(),
                )
        return place
