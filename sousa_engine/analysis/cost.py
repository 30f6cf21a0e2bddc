"""Accuracy against cost: trainable parameters, training time or peak memory per setting, and the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from sousa_engine.analysis.compare import parameters
from sousa_engine.analysis.scores import Score, row_score
from sousa_engine.analysis.sweeps import TrialRow
from sousa_engine.core.records import Run, RunStatus

MEASURES = {
    "trainable": "Trainable parameters",
    "train_s": "Training time",
    "peak_memory_mib": "Peak memory",
}


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A tested setting. cost: parameters, seconds or MiB, as a mean over its finished seeds.

    on_frontier: no other setting is at least as cheap and as accurate. Controls (random weights) are never on it.
    """

    name: str
    cost: float
    score: Score
    is_control: bool
    on_frontier: bool = False


def cost_points(rows: Sequence[TrialRow], measure: str) -> tuple[CostPoint, ...]:
    """The settings with a test result and a value for this cost, cheapest first."""
    found = []
    for row in rows:
        costs = [cost for run in row.runs if (cost := cost_of(run, measure)) is not None]
        score = row_score(row)
        if score and costs:
            is_control = row.runs[0].is_random
            found.append(CostPoint(name=row.label, cost=fmean(costs), score=score, is_control=is_control))
    best, points = -1.0, []
    for point in sorted(found, key=lambda point: (point.cost, -point.score.value)):
        ahead = not point.is_control and point.score.value > best
        best = point.score.value if ahead else best
        points.append(replace(point, on_frontier=ahead))
    return tuple(points)


def cost_of(run: Run, measure: str) -> float | None:
    """One of MEASURES for a finished run; None if it was not recorded."""
    if run.status is not RunStatus.FINISHED:
        return None
    value = parameters(run).get(measure) if measure == "trainable" else run.facts.get(measure)
    return float(value) if isinstance(value, int | float) else None


def devices(rows: Sequence[TrialRow]) -> tuple[str, ...]:
    """The devices of finished runs; times and memory on different devices are not comparable."""
    runs = [run for row in rows for run in row.runs if run.status is RunStatus.FINISHED]
    return tuple(sorted({str(run.facts.get("device") or run.device or "unknown") for run in runs}))
