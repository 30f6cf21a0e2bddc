"""Named selections of target modules, saved per variant of a backbone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sousa_engine.core.records import TargetSet, checked_set_name
from sousa_engine.store.connection import Connection


class TargetSets:
    """`store.target_sets`: saves, lists and deletes named selections of target modules."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def save(self, name: str, variant: str, paths: Iterable[str], head: str) -> TargetSet:
        """Save a set; it replaces one with the same name and variant. Raises UserError for an invalid name."""
        row = {
            "name": checked_set_name(name),
            "variant": variant,
            "paths_json": json.dumps(list(paths)),
            "head": head,
            "saved_at_ms": self._connection.clock_ms(),
        }
        with self._connection.writing() as db:
            db.table("target_sets").insert(row, replace=True)
        return _target_set(row)

    def all(self, variant: str | None = None) -> tuple[TargetSet, ...]:
        """The sets of a variant (default: of all), newest first."""
        sql = "SELECT * FROM target_sets WHERE :variant IS NULL OR variant = :variant ORDER BY saved_at_ms DESC, name"
        return tuple(_target_set(row) for row in self._connection.query(sql, {"variant": variant}))

    def delete(self, name: str, variant: str) -> None:
        with self._connection.writing() as db:
            db.execute("DELETE FROM target_sets WHERE name = ? AND variant = ?", [name, variant])


def _target_set(row: Mapping[str, Any]) -> TargetSet:
    return TargetSet(
        name=row["name"],
        variant=row["variant"],
        paths=tuple(json.loads(row["paths_json"])),
        head=row["head"],
        saved_at_ms=row["saved_at_ms"],
    )
