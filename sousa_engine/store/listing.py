"""Lists of runs: filtered, sorted, as light rows. Used by the parts of the store.

Reads the table `listed_runs`, which triggers keep up to date. No config is parsed, so sorting 10,000 runs takes
milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sousa_engine.core.errors import unknown
from sousa_engine.core.records import RunFilter, RunRow, RunStatus
from sousa_engine.store.migrations import Database
from sousa_engine.store.rows import listed

_STATUSES = " ".join(RunStatus)
SORTS = {  # sort orders; missing values come last in both directions
    "created": "run.created_at_ms",
    "title": "run.title COLLATE NOCASE",
    "status": f"instr('{_STATUSES}', run.status)",
    "valid": "valid.best_value",
    "test": "test.last_value",
    "trainable": "run.trainable_parameters",
    "took": "iif(run.ended_at_ms >= run.started_at_ms, run.ended_at_ms - run.started_at_ms, NULL) + {earlier}",
}
_OF_AN_ID = 4  # characters: shorter words occur in every id, as the 1 of "seed 1" does in a date
UP_FIRST = ("title", "status")  # ascending by default; the others descending


def prepare(db: Database) -> None:
    """Register our own search function: SQLite ignores case for ASCII letters only."""
    db.conn.create_function("has_words", -1, _has_words, deterministic=True)


def matching(db: Database, wanted: RunFilter, sort: str, descending: bool) -> list[int]:
    """The numbers of all matching runs, in order. Raises UnknownNameError for an unknown sort order.

    Ties are broken by age, newest first; when sorted by time of creation, in the requested direction.
    """
    if sort not in SORTS:
        raise unknown("sort order", sort, SORTS)
    tests, values = _tests(wanted)
    key, metric = SORTS[sort].format(earlier=_EARLIER), sort if sort in _METRICS else None
    order = "DESC" if descending else "ASC"
    sql = f"""
        SELECT run.run_number FROM listed_runs AS run {_METRICS[metric] if metric else ""}
        WHERE {" AND ".join(tests) or "true"}
        ORDER BY {key} IS NULL, {key} {order}, run.run_number {order if sort == "created" else "DESC"}
    """
    return [number for (number,) in db.execute(sql, values)]


def rows(db: Database, numbers: Sequence[int]) -> tuple[RunRow, ...]:
    """The rows of these runs, in the given order, without runs that were deleted in the meantime."""
    return tuple(listed(row) for row in db.query(_ROWS, [json.dumps(numbers)]))


def numbers_of(db: Database, run_ids: Iterable[str]) -> list[int]:
    """The numbers of these runs, in the given order, without unknown ids."""
    sql = "SELECT run_number FROM json_each(?) AS wanted JOIN listed_runs AS run ON run.id = wanted.value ORDER BY key"
    return [number for (number,) in db.execute(sql, [json.dumps(list(run_ids))])]


def tags(db: Database) -> dict[str, int]:
    """Each tag, in alphabetical order, with its number of runs."""
    sql = "SELECT value, count(*) FROM listed_runs, json_each(tags_json) GROUP BY value ORDER BY value COLLATE NOCASE"
    return dict(db.execute(sql))


def sparklines(db: Database, run_ids: Iterable[str], metric: str, points: int) -> dict[str, tuple[float | None, ...]]:
    """A metric of each run as at most `points` means over equal spans of steps, to be drawn as a small line."""
    found: dict[str, list[float | None]] = {}
    key = {"ids": json.dumps(list(run_ids)), "metric": metric, "points": points}
    for run_id, mean in db.execute(_SPARKLINES, key):
        found.setdefault(run_id, []).append(mean)
    return {run_id: tuple(values) for run_id, values in found.items()}


def _tests(wanted: RunFilter) -> tuple[list[str], dict[str, Any]]:
    tests, values = [], {}
    if wanted.archived is not None:
        tests.append(f"run.archived_at_ms IS {'NOT ' if wanted.archived else ''}NULL")
    if wanted.sweep_id is not None:
        tests.append("run.sweep_id = :sweep")
        values["sweep"] = wanted.sweep_id
    if wanted.statuses:
        tests.append("run.status IN (SELECT value FROM json_each(:statuses))")
        values["statuses"] = json.dumps(list(wanted.statuses))
    for i, tag in enumerate(wanted.tags):
        # Most lists of tags do not contain the quoted tag at all: checking that first is ten times as fast as parsing.
        tests.append(f"instr(run.tags_json, :quoted{i}) AND :tag{i} IN (SELECT value FROM json_each(run.tags_json))")
        values |= {f"tag{i}": tag, f"quoted{i}": json.dumps(tag, ensure_ascii=False)}
    if words := wanted.words.casefold().split():
        tests.append(
            "has_words(:words, run.id, run.tags_json, run.title, run.backbone, run.dataset, run.target_set,"
            " iif(run.weights = 'random', 'random weights', run.weights), run.note)"
        )
        values["words"] = "\n".join(words)
    return tests, values


def _has_words(words: str, run_id: str, tags_json: str, *texts: str) -> bool:
    text = "\n".join([*texts, *(json.loads(tags_json) if tags_json != "[]" else ())]).casefold()
    return all(word in text or (len(word) >= _OF_AN_ID and word in run_id) for word in words.split("\n"))


# Milliseconds of training before the run was resumed; NULL if the clock was set back in between.
_EARLIER = """(SELECT iif(min(took) < 0, NULL, coalesce(sum(took), 0)) FROM (
        SELECT json_extract(facts_json, fullkey || '[1]') - json_extract(facts_json, fullkey || '[0]') AS took
        FROM runs, json_each(runs.facts_json, '$.earlier') AS attempt
        WHERE runs.run_number = run.run_number AND attempt.type = 'array'))"""

_METRICS = {
    metric: f"""LEFT JOIN metric_summaries AS {metric} ON {metric}.run_number = run.run_number
        AND {metric}.metric_number = (SELECT metric_number FROM metric_names WHERE metric = '{metric}/accuracy')
        AND {metric}.last_clip_count > 0"""
    for metric in ("valid", "test")
}

_ROWS = f"""
SELECT run.*, valid.best_value AS valid, valid.last_clip_count AS valid_n,
       test.last_value AS test, test.last_clip_count AS test_n,
       iif(run.status = 'finished', NULL, (SELECT progress_json FROM runs WHERE runs.run_number = run.run_number))
           AS progress_json, {_EARLIER} AS earlier_ms
FROM json_each(?) AS wanted
JOIN listed_runs AS run ON run.run_number = wanted.value
{_METRICS["valid"]}
{_METRICS["test"]}
ORDER BY wanted.key
"""

_SPARKLINES = """
SELECT run.id, avg(point.value)
FROM json_each(:ids) AS wanted
JOIN listed_runs AS run ON run.id = wanted.value
JOIN metric_names AS name ON name.metric = :metric
JOIN metric_summaries AS summary ON summary.run_number = run.run_number AND summary.metric_number = name.metric_number
JOIN metric_points AS point ON point.run_number = run.run_number AND point.metric_number = name.metric_number
GROUP BY run.run_number, point.step * :points / (summary.last_step + 1)
ORDER BY run.run_number, min(point.step)
"""
