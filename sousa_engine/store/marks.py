"""Tags, notes and the archive of runs, and their deletion."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable

from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, checked_note, checked_tags
from sousa_engine.store import listing, trash
from sousa_engine.store.connection import THESE, Connection
from sousa_engine.store.runs import existing, rows, rows_of


class Marks:
    """What people say of runs, and deleting them: `store.marks`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def tags(self) -> dict[str, int]:
        """Every tag, in alphabetical order, and how many runs have it."""
        with self._connection.reading() as db:
            return listing.tags(db)

    def set_tags(self, run_id: str, tags: Collection[str]) -> Run:
        """Exactly these. Raises UserError for a text that cannot be a tag, UnknownNameError."""
        wanted = checked_tags(tags)
        self._retag([run_id], lambda old: wanted)
        return existing(self._connection, run_id)

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
        with self._connection.writing() as db:
            db.execute("UPDATE runs SET note = ? WHERE id = ?", [note, run_id])
        return existing(self._connection, run_id)

    def archive(self, run_ids: Iterable[str]) -> None:
        """Out of the lists, and kept. Raises UnknownNameError; UserError for a run that is not over. All or none."""
        ids = list(run_ids)
        with self._connection.writing() as db:
            _check_over(self._connection, ids, "archived")
            db.execute(
                f"UPDATE runs SET archived_at_ms = ? WHERE id IN {THESE} AND archived_at_ms IS NULL",
                [self._connection.clock_ms(), json.dumps(ids)],
            )

    def unarchive(self, run_ids: Iterable[str]) -> None:
        with self._connection.writing() as db:
            db.execute(f"UPDATE runs SET archived_at_ms = NULL WHERE id IN {THESE}", [json.dumps(list(run_ids))])

    def delete(self, run_ids: Iterable[str]) -> None:
        """Remove runs, all that was measured of them, and their folders; all of them or none.

        Raises UnknownNameError; UserError for a run that is not over, or whose sweep is not: it would train it again.
        Cut short at any point, it is made whole where the store is opened next: see trash.py.
        """
        ids = list(dict.fromkeys(run_ids))
        with trash.alone(self._connection.workspace, wait=True):
            self._check_deletable(ids)
            try:
                trash.put_in(self._connection.workspace, ids)
                with self._connection.writing() as db:
                    self._check_deletable(ids)  # again: meanwhile a sweep may have been taken up
                    of_these = f"run_number IN (SELECT run_number FROM runs WHERE id IN {THESE})"
                    for table in ("events", "predictions", "runs"):  # all else goes with runs
                        db.execute(f"DELETE FROM {table} WHERE {of_these}", [json.dumps(ids)])
            finally:
                settle_trash(self._connection)

    def _retag(self, run_ids: Iterable[str], change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        with self._connection.writing() as db:
            for run in rows_of(self._connection, run_ids):
                tags = json.dumps(change(run.tags), ensure_ascii=False)
                db.execute("UPDATE runs SET tags_json = ? WHERE id = ?", [tags, run.id])

    def _check_deletable(self, run_ids: Collection[str]) -> None:
        _check_over(self._connection, run_ids, "deleted")
        found = self._connection.query(
            "SELECT runs.id, sweeps.id AS sweep, sweeps.status FROM runs JOIN sweeps ON sweeps.id = runs.sweep_id"
            f" WHERE runs.id IN {THESE} AND sweeps.ended_at_ms IS NULL LIMIT 1",
            [json.dumps(list(run_ids))],
        )
        if found:
            raise UserError(
                f"{found[0]['id']} belongs to sweep {found[0]['sweep']}, which is {found[0]['status']} and could train "
                "it again. Stop the sweep first, or wait for its end."
            )


def settle_trash(connection: Connection) -> None:
    """By its row, each folder in the trash goes back or goes for good. Only while nobody else deletes."""
    lying = trash.found(connection.workspace)
    kept = {row.id for row in rows(connection, lying)}
    trash.put_back(connection.workspace, kept)
    trash.empty(connection.workspace, [run_id for run_id in lying if run_id not in kept])


def _check_over(connection: Connection, run_ids: Iterable[str], what: str) -> None:
    alive = [row for row in rows_of(connection, run_ids) if not row.status.is_over]
    if alive:
        named = ", ".join(f"{row.id} is {row.status.value}" for row in alive[:5])
        more = f" and {len(alive) - 5} more" if len(alive) > 5 else ""
        raise UserError(f"Only a run that is over can be {what}: {named}{more}. Stop it first.")
