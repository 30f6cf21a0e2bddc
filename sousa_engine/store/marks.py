"""Tags, notes, archiving and deletion of runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterable

from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, checked_note, checked_tags
from sousa_engine.store import listing, trash
from sousa_engine.store.connection import THESE, Connection
from sousa_engine.store.runs import existing, rows, rows_of


class Marks:
    """`store.marks`: organises runs by tags, notes and the archive, and deletes runs for good."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def tags(self) -> dict[str, int]:
        """Each tag, in alphabetical order, with its number of runs."""
        with self._connection.reading() as db:
            return listing.tags(db)

    def set_tags(self, run_id: str, tags: Collection[str]) -> Run:
        """Replace the tags of a run. Raises UserError for an invalid tag, UnknownNameError."""
        wanted = checked_tags(tags)
        self._retag([run_id], lambda old: wanted)
        return existing(self._connection, run_id)

    def add_tags(self, run_ids: Iterable[str], tags: Collection[str]) -> None:
        """Add tags to all runs or, on an error, to none. Raises UserError for an invalid tag, UnknownNameError."""
        more = checked_tags(tags)
        self._retag(run_ids, lambda old: checked_tags([*old, *more]))

    def remove_tags(self, run_ids: Iterable[str], tags: Collection[str]) -> None:
        """Remove tags from the runs that have them. Changes nothing if it raises UnknownNameError."""
        less = {tag.strip() for tag in tags}
        self._retag(run_ids, lambda old: tuple(tag for tag in old if tag not in less))

    def set_note(self, run_id: str, text: str) -> Run:
        """Set the note of a run; "" removes it. Raises UserError if it is too long, UnknownNameError."""
        note = checked_note(text)
        with self._connection.writing() as db:
            db.execute("UPDATE runs SET note = ? WHERE id = ?", [note, run_id])
        return existing(self._connection, run_id)

    def archive(self, run_ids: Iterable[str]) -> None:
        """Hide runs from lists without deleting them: all of them, or none if it raises.

        Raises UnknownNameError; UserError for a run that has not ended.
        """
        ids = list(run_ids)
        with self._connection.writing() as db:
            check_over(self._connection, ids, "archived")
            db.execute(
                f"UPDATE runs SET archived_at_ms = ? WHERE id IN {THESE} AND archived_at_ms IS NULL",
                [self._connection.clock_ms(), json.dumps(ids)],
            )

    def unarchive(self, run_ids: Iterable[str]) -> None:
        with self._connection.writing() as db:
            db.execute(f"UPDATE runs SET archived_at_ms = NULL WHERE id IN {THESE}", [json.dumps(list(run_ids))])

    def delete(self, run_ids: Iterable[str]) -> None:
        """Delete runs with their measurements and folders: all of them, or none if it raises.

        Raises UnknownNameError; UserError for a run that has not ended, or whose sweep is still open and would train
        it again. If the process dies half-way, the next opening of the store completes or reverts it: see trash.py.
        """
        delete(self._connection, run_ids)

    def _retag(self, run_ids: Iterable[str], change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        with self._connection.writing() as db:
            for run in rows_of(self._connection, run_ids):
                tags = json.dumps(change(run.tags), ensure_ascii=False)
                db.execute("UPDATE runs SET tags_json = ? WHERE id = ?", [tags, run.id])


def delete(connection: Connection, run_ids: Iterable[str], sweep_ids: Collection[str] = ()) -> None:
    """Delete runs, and sweeps whose runs are all among them: see `Marks.delete`.

    The study of a sweep is removed once its row is gone: a process that dies in between leaves only an unused file.
    """
    ids = list(dict.fromkeys(run_ids))
    with trash.alone(connection.workspace, wait=True):
        _check_deletable(connection, ids, sweep_ids)
        try:
            trash.put_in(connection.workspace, ids)
            with connection.writing() as db:
                _check_deletable(connection, ids, sweep_ids)  # again: a sweep may have been continued in the meantime
                of_these = f"run_number IN (SELECT run_number FROM runs WHERE id IN {THESE})"
                for table in ("events", "predictions", "runs"):  # the other tables cascade
                    db.execute(f"DELETE FROM {table} WHERE {of_these}", [json.dumps(ids)])
                db.execute(f"DELETE FROM sweeps WHERE id IN {THESE}", [json.dumps(list(sweep_ids))])
            for sweep_id in sweep_ids:
                with contextlib.suppress(OSError):
                    connection.workspace.study(sweep_id).unlink(missing_ok=True)
        finally:
            settle_trash(connection)


def _check_deletable(connection: Connection, run_ids: Collection[str], sweep_ids: Collection[str]) -> None:
    check_over(connection, run_ids, "deleted")
    found = connection.query(
        "SELECT runs.id, sweeps.id AS sweep, sweeps.status FROM runs JOIN sweeps ON sweeps.id = runs.sweep_id"
        f" WHERE runs.id IN {THESE} AND sweeps.ended_at_ms IS NULL LIMIT 1",
        [json.dumps(list(run_ids))],
    )
    if found:
        raise UserError(
            f"{found[0]['id']} belongs to sweep {found[0]['sweep']}, which is {found[0]['status']} and could train "
            "it again. Stop the sweep first, or wait until it has finished."
        )
    more = connection.query(
        f"SELECT sweep_id FROM runs WHERE sweep_id IN {THESE} AND id NOT IN {THESE} LIMIT 1",
        [json.dumps(list(sweep_ids)), json.dumps(list(run_ids))],
    )
    if more:
        raise UserError(f"Sweep {more[0]['sweep_id']} has got more runs in the meantime. Nothing was deleted.")


def settle_trash(connection: Connection) -> None:
    """Restore the folders in the trash whose runs still have a row and remove the others. Needs the lock of trash."""
    lying = trash.found(connection.workspace)
    kept = {row.id for row in rows(connection, lying)}
    trash.put_back(connection.workspace, kept)
    trash.empty(connection.workspace, [run_id for run_id in lying if run_id not in kept])


def check_over(connection: Connection, run_ids: Iterable[str], what: str) -> None:
    """Raises UserError if a run has not ended. what: "archived", "deleted"."""
    alive = [row for row in rows_of(connection, run_ids) if not row.status.is_over]
    if alive:
        named = ", ".join(f"{row.id} is {row.status.value}" for row in alive[:5])
        more = f" and {len(alive) - 5} more" if len(alive) > 5 else ""
        raise UserError(f"Only runs that have ended can be {what}: {named}{more}. Stop them first.")
