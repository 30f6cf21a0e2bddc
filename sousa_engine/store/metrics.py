"""What runs measured. The supervisor writes it (ledger.py)."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sousa_engine.core.records import Curve, MetricPoint, Summary
from sousa_engine.store import listing, metric_tables
from sousa_engine.store.connection import Connection


class Metrics:
    """Curves and summaries, for reading: `store.metrics`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def names(self, run_id: str) -> tuple[str, ...]:
        """By name, without those of single modules: see `updates`."""
        sql = (
            "SELECT metric FROM metric_summaries JOIN metric_names USING (metric_number)"
            f" WHERE run_number = ? AND {metric_tables.LISTED} ORDER BY metric"
        )
        return tuple(row["metric"] for row in self._connection.query(sql, [self._connection.number(run_id)]))

    def curve(
        self, run_id: str, metric: str, *, first: int | None = None, last: int | None = None, max_points: int = 500
    ) -> Curve:
        """The metric over the steps first..last, in at most about `max_points` buckets of a power of two of steps.

        A bucket's step is the first one in it with a point; mean, low and high are None where nothing was finite.
        A metric the run does not have is an empty curve.
        """
        with self._connection.reading() as db:
            return metric_tables.curve(
                db, self._connection.number(run_id), metric, first=first, last=last, max_points=max_points
            )

    def moments(self, run_id: str, metric: str, steps: Iterable[int]) -> dict[int, int]:
        """Step -> when its value of this metric was measured, in ms since 1970; steps without one are not in it."""
        with self._connection.reading() as db:
            return metric_tables.moments(db, self._connection.number(run_id), metric, steps)

    def summaries(self, run_ids: Iterable[str]) -> dict[str, dict[str, Summary]]:
        """Last and best value of every metric (`names`) of every run asked for. nan and inf are None here."""
        found: dict[str, dict[str, Summary]] = {run_id: {} for run_id in run_ids}
        for row in self._connection.query(metric_tables.SUMMARIES, [json.dumps(list(found))]):
            run_id = row.pop("id")
            found[run_id][row["metric"]] = Summary(**row)
        return found

    def updates(self, run_id: str, step: int | None = None) -> tuple[MetricPoint, ...]:
        """How far training had moved each target by this step, or by the last one that was measured: a point each.

        metric: "update/<path of the module>". Empty where nothing was measured then.
        """
        found = self._connection.query(metric_tables.UPDATES_AT, {"run": self._connection.number(run_id), "step": step})
        return tuple(MetricPoint(**{**row, "value": float(row["value"])}) for row in found)

    def first_divergence(self, run_id: str) -> tuple[str, int] | None:
        """The metric that was the first to be nan or inf, and the step."""
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
        """The metric of each run that has it, in at most `points` means over its steps; None where none was finite."""
        with self._connection.reading() as db:
            return listing.sparklines(db, run_ids, metric, points)
