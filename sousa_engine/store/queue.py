"""The queue of runs: its order, its pause, and how many runs share the CPU."""

from __future__ import annotations

from collections.abc import Callable

from sousa_engine.core.errors import UserError
from sousa_engine.core.records import MOST_CPU_SLOTS, QueueSettings, Run, RunRow
from sousa_engine.store import events, listing
from sousa_engine.store.connection import Connection
from sousa_engine.store.runs import SLOT_HELD, existing, run_of

NOT_PAUSED = (
    "NOT EXISTS (SELECT 1 FROM queue WHERE paused_at_ms IS NOT NULL)"
    " AND NOT EXISTS (SELECT 1 FROM sweeps WHERE sweeps.id = runs.sweep_id AND sweeps.status = 'paused')"
)
IN_QUEUE = "WHERE status = 'queued' ORDER BY queue_position, run_number"


class Queue:
    """The runs that wait, and how the queue is set: `store.queue`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def settings(self) -> QueueSettings:
        (row,) = self._connection.query("SELECT paused_at_ms, cpu_slots FROM queue")
        return QueueSettings(**row)

    def waiting(self, limit: int | None = None) -> tuple[RunRow, ...]:
        """The runs that wait, the next one first: each slot takes the first that may use it."""
        sql = f"SELECT run_number FROM runs {IN_QUEUE} LIMIT ?"
        with self._connection.reading() as db:
            numbers = [number for (number,) in db.execute(sql, [-1 if limit is None else limit])]
            return listing.rows(db, numbers)

    def live(self) -> tuple[Run, ...]:
        """The runs that hold a slot: starting, running or stopping. At most one a slot."""
        return tuple(
            run_of(row) for row in self._connection.query(f"SELECT * FROM runs WHERE {SLOT_HELD} ORDER BY slot")
        )

    def waiting_devices(self) -> tuple[str, ...]:
        """The devices that queued runs ask for, each once; none where the queue is empty or paused.

        The runs of a paused sweep do not wait either.
        """
        sql = f"SELECT DISTINCT wanted_device FROM runs WHERE status = 'queued' AND {NOT_PAUSED}"
        return tuple(row["wanted_device"] for row in self._connection.query(sql))

    def count(self) -> int:
        return self._connection.query("SELECT count(*) AS n FROM runs WHERE status = 'queued'")[0]["n"]

    def queued_at_ms(self, run_id: str) -> int:
        """When it was queued; of a run that was resumed, when it was last. Raises UnknownNameError."""
        sql = (
            "SELECT coalesce(max(at_ms), created_at_ms) AS at_ms FROM runs LEFT JOIN events"
            " ON events.run_number = runs.run_number AND kind = 'resumed' WHERE runs.run_number = ?"
        )
        return self._connection.query(sql, [self._connection.number(run_id)])[0]["at_ms"]

    def move(self, run_id: str, to: int) -> int:
        """Give a queued run another place in the queue, 1 is the next one; returns the place it has now.

        Raises UnknownNameError; UserError for a run that does not wait.
        """
        return self._move(run_id, lambda place: to)

    def move_by(self, run_id: str, places: int) -> int:
        """-1: one place forward, 1: one back; no further than the ends. Returns and raises as `move` does."""
        return self._move(run_id, lambda place: place + places)

    def pause(self) -> bool:
        """Nothing is claimed any more, what trains goes on. False if it was paused already."""
        with self._connection.writing() as db:
            sql = "UPDATE queue SET paused_at_ms = ? WHERE paused_at_ms IS NULL"
            return db.execute(sql, [self._connection.clock_ms()]).rowcount > 0

    def resume(self) -> bool:
        """False if it was not paused. Call `ensure.ensure` next."""
        with self._connection.writing() as db:
            return db.execute("UPDATE queue SET paused_at_ms = NULL WHERE paused_at_ms IS NOT NULL").rowcount > 0

    def set_cpu_slots(self, count: int) -> None:
        """How many runs may train on the CPU beside each other. Raises UserError."""
        if not 1 <= count <= MOST_CPU_SLOTS:
            raise UserError(f"{count} CPU slots will not do: 1 to {MOST_CPU_SLOTS} are possible.")
        with self._connection.writing() as db:
            db.execute("UPDATE queue SET cpu_slots = ?", [count])

    def _move(self, run_id: str, place_of: Callable[[int], int]) -> int:
        """place_of: the place it has, from 1 -> the place it is to have."""
        with self._connection.writing() as db:
            before = db.execute(f"SELECT run_number, queue_position, id FROM runs {IN_QUEUE}").fetchall()
            ids = [row[2] for row in before]
            if run_id not in ids:
                status = existing(self._connection, run_id).status.value
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
                events.add(
                    self._connection,
                    run_id,
                    "moved",
                    f"Moved to place {place} of the queue.",
                    self._connection.clock_ms(),
                )
        return place
