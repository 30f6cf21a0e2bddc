"""The tables of metrics: points, levels of detail computed from them, and summaries.

Used by Ledger and Metrics, inside their transactions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from sousa_engine.core.best import Epoch, best_epoch
from sousa_engine.core.records import UPDATE, Curve
from sousa_engine.store.migrations import Database
from sousa_engine.workspace.spool import SpoolPoint

_ACCURACY, _LOSS = "valid/accuracy", "valid/loss"
LEVEL_SHIFTS = (3, 6, 9, 12)  # curves are precomputed in buckets of 8, 64, 512 and 4096 steps


def add_points(db: Database, run_number: int, points: Iterable[SpoolPoint]) -> None:
    by_metric: dict[str, list[SpoolPoint]] = {}
    for point in points:
        by_metric.setdefault(point.metric, []).append(point)
    if not by_metric:
        return
    db.conn.executemany(
        "INSERT OR IGNORE INTO metric_names (metric, better) VALUES (?, ?)",
        [(name, "lower" if _lower_is_better(name) else "higher") for name in by_metric],
    )
    numbers = _numbers(db, by_metric)
    for name, found in sorted(by_metric.items()):
        found = sorted({point.step: point for point in found}.values(), key=lambda point: point.step)
        metric = numbers[name]
        db.conn.executemany(
            "INSERT OR REPLACE INTO metric_points VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(run_number, metric, p.step, *_finite(p.value), p.epoch, p.n, p.at_ms) for p in found],
        )
        # Levels are recomputed from the points wherever points were added: a repeated step cannot count twice.
        finer = 0
        for shift in LEVEL_SHIFTS:
            key = {"run": run_number, "metric": metric, "width": 1 << shift, "group": shift - finer}
            key |= {"low": found[0].step >> shift, "high": found[-1].step >> shift, "finer": 1 << finer}
            db.execute(_LEVEL_FROM_LEVEL if finer else _LEVEL_FROM_POINTS, key)
            finer = shift
        _summarise(db, run_number, metric, name, found)
    if by_metric.keys() & {_ACCURACY, _LOSS}:
        _choose_best_epoch(db, run_number)


def curve(db: Database, run_number: int, metric: str, *, first: int | None, last: int | None, max_points: int) -> Curve:
    """See Metrics.curve."""
    key = {"run": run_number, "metric": _numbers(db, [metric]).get(metric)}
    span = db.execute(_SPAN, {**key, "first": first, "last": last, "width": 1 << LEVEL_SHIFTS[-1]})
    count, low_step, high_step = span.fetchone()
    if not count:
        return Curve(metric=metric, width=1, steps=(), mean=(), low=(), high=())
    shift = 0
    if count > max_points:
        while (high_step >> shift) - (low_step >> shift) >= max_points:
            shift += 1
    prepared = max((s for s in LEVEL_SHIFTS if s <= shift), default=0)
    key |= {"width": 1 << prepared, "group": shift - prepared}
    low, high = low_step >> shift << shift, ((high_step >> shift) + 1 << shift) - 1  # complete buckets at both ends
    key |= {"first": low >> prepared, "last": high >> prepared}
    columns = list(zip(*db.execute(_CURVE_FROM_LEVELS if prepared else _CURVE_FROM_POINTS, key), strict=True))
    steps, mean, low, high = columns if columns else ((), (), (), ())
    return Curve(metric=metric, width=1 << shift, steps=steps, mean=mean, low=low, high=high)


def moments(db: Database, run_number: int, metric: str, steps: Iterable[int]) -> dict[int, int]:
    """See Metrics.moments."""
    key = {"run": run_number, "metric": _numbers(db, [metric]).get(metric), "steps": json.dumps(list(steps))}
    return dict(db.execute(_MOMENTS, key))


def _summarise(db: Database, run_number: int, metric: int, name: str, found: list[SpoolPoint]) -> None:
    key = [run_number, metric]
    old = db.execute(
        "SELECT last_step, best_value, best_step, first_not_finite_step FROM metric_summaries"
        " WHERE run_number = ? AND metric_number = ?",
        key,
    ).fetchone()
    last_step, best_value, best_step, gap = old or (None, None, None, None)
    if last_step is not None and found[0].step <= last_step:  # steps were repeated: summarise all points again
        rows = db.execute(
            "SELECT step, coalesce(value, not_finite), epoch, clip_count, at_ms FROM metric_points"
            " WHERE run_number = ? AND metric_number = ? ORDER BY step",
            key,
        )
        found = [SpoolPoint(name, step, float(value), *rest) for step, value, *rest in rows]
        best_value = best_step = gap = None
    finite = [point for point in found if math.isfinite(point.value)]
    pick, ahead = (min, float.__lt__) if _lower_is_better(name) else (max, float.__gt__)
    best = pick(finite, key=lambda point: point.value, default=None)
    if best is not None and (best_value is None or ahead(best.value, best_value)):
        best_value, best_step = best.value, best.step
    if gap is None:
        gap = next((point.step for point in found if not math.isfinite(point.value)), None)
    last = found[-1]
    db.execute(
        "INSERT OR REPLACE INTO metric_summaries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [*key, _finite(last.value)[0], last.step, last.epoch, last.n, best_value, best_step, gap],
    )


def _choose_best_epoch(db: Database, run_number: int) -> None:
    """Name the epoch that the trainer keeps, also among epochs of equal accuracy, which only their loss tells apart."""
    key = {"run": run_number, "accuracy": _ACCURACY, "loss": _LOSS}
    best = best_epoch(Epoch(*row) for row in db.execute(_EPOCHS, key))
    if best:
        db.execute(_SET_BEST_STEP, {**key, "step": best.step})


def _numbers(db: Database, names: Iterable[str]) -> dict[str, int]:
    """The numbers of these metrics only: the table has a row for every module that was ever adapted."""
    sql = "SELECT metric, metric_number FROM json_each(?) AS wanted JOIN metric_names ON metric = wanted.value"
    return dict(db.execute(sql, [json.dumps(list(names))]))


def _finite(value: float) -> tuple[float | None, str | None]:
    """(value, None), or (None, name) for nan, inf and -inf, because SQLite would store nan as NULL."""
    return (value, None) if math.isfinite(value) else (None, str(value))


def _lower_is_better(metric: str) -> bool:
    return "loss" in metric


# The widest level counts points and bounds their steps with a few rows. Its bounds are complete buckets, which is good
# enough to choose a width; the requested range is cut afterwards.
_SPAN = """
SELECT sum(point_count) AS point_count,
       max(min(first_step), coalesce(:first, min(first_step))) AS first_step,
       min((max(bucket) + 1) * :width - 1, coalesce(:last, (max(bucket) + 1) * :width - 1),
           (SELECT last_step FROM metric_summaries WHERE run_number = :run AND metric_number = :metric)) AS last_step
FROM metric_levels
WHERE run_number = :run AND metric_number = :metric AND width = :width
  AND bucket BETWEEN coalesce(:first / :width, bucket) AND coalesce(:last / :width, bucket)
"""

_CURVE_FROM_POINTS = """
SELECT min(step), avg(value), min(value), max(value) FROM metric_points
WHERE run_number = :run AND metric_number = :metric AND step BETWEEN :first AND :last
GROUP BY step >> :group ORDER BY step >> :group
"""

_CURVE_FROM_LEVELS = """
SELECT min(first_step), sum(value_sum) / sum(finite_count), min(value_min), max(value_max) FROM metric_levels
WHERE run_number = :run AND metric_number = :metric AND width = :width AND bucket BETWEEN :first AND :last
GROUP BY bucket >> :group ORDER BY bucket >> :group
"""

_MOMENTS = """
SELECT step, at_ms FROM json_each(:steps) AS wanted
JOIN metric_points ON run_number = :run AND metric_number = :metric AND step = wanted.value
"""

_LEVEL_FROM_POINTS = """
INSERT OR REPLACE INTO metric_levels
SELECT run_number, metric_number, :width, step >> :group, min(step), count(*), count(value),
       sum(value), min(value), max(value)
FROM metric_points
WHERE run_number = :run AND metric_number = :metric AND step BETWEEN :low * :width AND (:high + 1) * :width - 1
GROUP BY step >> :group
"""

_LEVEL_FROM_LEVEL = """
INSERT OR REPLACE INTO metric_levels
SELECT run_number, metric_number, :width, bucket >> :group, min(first_step), sum(point_count), sum(finite_count),
       sum(value_sum), min(value_min), max(value_max)
FROM metric_levels
WHERE run_number = :run AND metric_number = :metric AND width = :finer
  AND bucket BETWEEN :low << :group AND ((:high + 1) << :group) - 1
GROUP BY bucket >> :group
"""

_NUMBER = "(SELECT metric_number FROM metric_names WHERE metric = :{})"

_EPOCHS = f"""
SELECT accuracy.step, accuracy.value, loss.value
FROM metric_points AS accuracy
LEFT JOIN metric_points AS loss ON loss.run_number = accuracy.run_number AND loss.step = accuracy.step
    AND loss.metric_number = {_NUMBER.format("loss")}
WHERE accuracy.run_number = :run AND accuracy.metric_number = {_NUMBER.format("accuracy")}
  AND accuracy.value IS NOT NULL
"""

_SET_BEST_STEP = f"""
UPDATE metric_summaries SET best_step = :step
WHERE run_number = :run AND metric_number = {_NUMBER.format("accuracy")}
"""

_UPDATES = f"metric GLOB '{UPDATE}*'"
# The metrics shown in lists and summaries, without those of single modules. Selected by number, so that a list of
# 1,000 runs does not read the rows of their modules only to drop them.
LISTED = f"metric_number IN (SELECT metric_number FROM metric_names WHERE NOT {_UPDATES})"

SUMMARIES = f"""
SELECT r.id AS id, m.metric, s.last_value AS last, s.last_step AS last_step, s.best_value AS best,
       s.best_step AS best_step, s.last_clip_count AS n
FROM json_each(?) AS wanted
JOIN runs AS r ON r.id = wanted.value
JOIN metric_summaries AS s ON s.run_number = r.run_number AND s.{LISTED}
JOIN metric_names AS m USING (metric_number)
ORDER BY m.metric
"""

UPDATES_AT = f"""
SELECT m.metric, p.step, coalesce(p.value, p.not_finite) AS value, p.epoch
FROM metric_names AS m CROSS JOIN metric_points AS p USING (metric_number)
WHERE m.{_UPDATES} AND p.run_number = :run AND p.step = coalesce(:step, (
    SELECT max(last_step) FROM metric_summaries JOIN metric_names USING (metric_number)
    WHERE run_number = :run AND {_UPDATES}))
ORDER BY m.metric
"""
