"""The measurements of runs, to be read. The supervisor writes them (ledger.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sousa_engine.core.records import Curve, MetricPoint, Summary
from sousa_engine.store import listing, metric_tables
from sousa_engine.store.connection import Connection


class Metrics:
    """`store.metrics`: reads curves, summaries and the updates of single modules."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def names(self, run_id: str) -> tuple[str, ...]:
        """The metrics of a run in alphabetical order, without those of single modules (see `updates`)."""
        sql = (
            "SELECT metric FROM metric_summaries JOIN metric_names USING (metric_number)"
            f" WHERE run_number = ? AND {metric_tables.LISTED} ORDER BY metric"
        )
        return tuple(row["metric"] for row in self._connection.query(sql, [self._connection.number(run_id)]))

    def curve(
        self, run_id: str, metric: str, *, first: int | None = None, last: int | None = None, max_points: int = 500
    ) -> Curve:
        """A metric over the steps first..last, in at most about `max_points` buckets; their width is a power of two.

        The step of a bucket is the first one with a point; mean, low and high are None if no value is finite. The
        curve is empty if the run does not have this metric.
        """
        with self._connection.reading() as db:
            return metric_tables.curve(
                db, self._connection.number(run_id), metric, first=first, last=last, max_points=max_points
            )

    def moments(self, run_id: str, metric: str, steps: Iterable[int]) -> dict[int, int]:
        """Step -> time at which this metric was measured, in ms since 1970; without the steps that have no value."""
        with self._connection.reading() as db:
            return metric_tables.moments(db, self._connection.number(run_id), metric, steps)

    def summaries(self, run_ids: Iterable[str]) -> dict[str, dict[str, Summary]]:
        """Last and best value of each metric (see `names`) of each run. Values that are not finite are None."""
        found: dict[str, dict[str, Summary]] = {run_id: {} for run_id in run_ids}
        for row in self._connection.query(metric_tables.SUMMARIES, [json.dumps(list(found))]):
            run_id = row.pop("id")
            found[run_id][row["metric"]] = Summary(**row)
        return found

    def updates(self, run_id: str, step: int | None = None) -> tuple[MetricPoint, ...]:
        """Relative update of each target module at this step (default: the last measured one), one point per module.

        Their metric is "update/<path of the module>". Empty if nothing was measured at this step.
        """
        found = self._connection.query(metric_tables.UPDATES_AT, {"run": self._connection.number(run_id), "step": step})
        return tuple(MetricPoint(**{**row, "value": float(row["value"])}) for row in found)

    def first_divergence(self, run_id: str) -> tuple[str, int] | None:
        """The first metric that became NaN or infinite, and the step; None if all values are finite."""
        found = self._connection.query(
            "SELECT metric, first_not_finite_step AS step FROM metric_summaries JOIN metric_names USING (metric_number)"
            f" WHERE run_number = ? AND first_not_finite_step IS NOT NULL AND {metric_tables.LISTED}"
            " ORDER BY step, metric LIMIT 1",
            [self._connection.number(run_id)],
        )
        return (found[0]["metric"], found[0]["step"]) if found else None

    def sparklines(
        self, run_ids: Iterable[str], metric: str, *, points: int = 20
    ) -> dict[str, tuple[float | None, ...]]:
        """A metric as at most `points` means over its steps, for each run that has it; None if no value is finite."""
        with self._connection.reading() as db:
            return listing.sparklines(db, run_ids, metric, points)
