"""The one place where rows of runs.db become records. What was stored is validated again, row by row.

A row that cannot be read (another version wrote it, or it was damaged) never raises here: its record says why, and all
other rows are read as usual.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from sousa_engine.core import config as configs
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError
from sousa_engine.core.records import MOST_MS, Event, NoConfig, Prediction, Progress, Run, RunRow, RunStatus

Row = Mapping[str, Any]
T = TypeVar("T")
_WRONG = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
ADVICE = "Update the program if a newer version wrote this run; otherwise delete it."


def run_of(row: Row) -> Run:
    wrong: list[str] = []

    def read(column: str, otherwise: T, decode: Callable[[Any], T]) -> T:
        try:
            return decode(row[column])
        except _WRONG:
            wrong.append(f"{column} of this run cannot be read.")
            return otherwise

    settings, why = _settings(row)
    if why:
        wrong.append(f"The settings of this run cannot be read: {why}")
    values = {
        "id": row["id"],
        "config": settings,
        "status": RunStatus(row["status"]),
        "created_at_ms": row["created_at_ms"],
        "started_at_ms": row["started_at_ms"],
        "ended_at_ms": row["ended_at_ms"],
        "device": row["slot"],
        "reason": row["reason"],
        "weights_label": row["weights_label"],
        "progress": read("progress_json", None, _progress),
        "facts": read("facts_json", {}, _facts),
        "attempts": row["launches"],
        "stop_requested_at_ms": row["stop_requested_at_ms"],
        "kill_requested_at_ms": row["kill_requested_at_ms"],
        "sweep_id": row["sweep_id"],
        "trial": row["trial_number"],
        "setting": read("setting_json", {}, _object),
        "pruned_at_step": row["pruned_at_step"],
        "tags": read("tags_json", (), _texts),
        "note": row["note"],
        "archived_at_ms": row["archived_at_ms"],
    }
    return Run(**values, unreadable=" ".join([*wrong, ADVICE]) if wrong else "")


def listed(row: Row) -> RunRow:
    """A row of a list. It has no settings, so it can be read whatever they are."""
    values = {name: value for name, value in row.items() if name not in ("run_number", "progress_json", "tags_json")}
    values["status"] = RunStatus(values["status"])
    values["trainable"] = values.pop("trainable_parameters")
    return RunRow(
        **values,
        tags=_or((), _texts, row["tags_json"]),
        progress=_or(None, _progress, row["progress_json"]),
    )


def event_of(row: Row) -> Event:
    """An event whose time is none is shown with that of 1970."""
    at_ms = row["at_ms"]
    known = isinstance(at_ms, int) and abs(at_ms) <= MOST_MS
    return Event(at_ms=at_ms if known else 0, kind=str(row["kind"]), message=str(row["message"]))


def prediction_of(row: Row) -> Prediction:
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items()}
    return Prediction(**values)


def facts_of(text: str) -> dict[str, Any]:
    """The facts in a row; none if they cannot be read."""
    return _or({}, _facts, text)


def _settings(row: Row) -> tuple[RunConfig, str]:
    """The settings and "", or their substitute and why they cannot be read."""
    try:
        return _config(row["config_json"], row["name"]), ""
    except ConfigError as error:
        why = str(error)
    except _WRONG as error:
        why = f"{type(error).__name__}."
    return cast(RunConfig, NoConfig(str(row["name"] or "unreadable settings"), f"Run {row['id']}: {why} {ADVICE}")), why


@lru_cache(maxsize=4096)
def _config(text: str, name: str) -> RunConfig:
    """Cached and shared, as it is frozen: validating 73 targets per run would cost a list of 1,000 runs 0.1 s."""
    config = configs.of_json(text)
    return config if config.name == name else configs.with_values(config, name=name)


def _or(otherwise: T, decode: Callable[[Any], T], text: str | None) -> T:
    try:
        return decode(text)
    except _WRONG:
        return otherwise


def _progress(text: str | None) -> Progress | None:
    return Progress.read(json.loads(text)) if text else None


def _object(text: str | None) -> dict[str, Any]:
    found = json.loads(text) if text else {}
    if not isinstance(found, dict):
        raise TypeError(f"{found!r:.60} is not an object.")
    return found


def _facts(text: str) -> dict[str, Any]:
    found = _object(text)
    for start, end in found.get("earlier", ()):
        if not isinstance(start, int) or not isinstance(end, int):
            raise TypeError(f"{start!r} to {end!r} is not an attempt.")
    return found


def _texts(text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TypeError(f"{text[:60]!r} is not a list of texts.")
    return tuple(found)
