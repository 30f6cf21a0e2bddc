"""Accuracy against cost: trainable parameters, training time or peak memory per setting, and the frontier."""

from __future__ import annotations

from collections import Counter
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


@dataclass(frozen=True)
class Conditions:
    """What the time and memory of a run depend on besides its settings. None: not recorded, or changed on the way."""

    device: str
    threads: int | None
    cpu_slots: int | None

    def __str__(self) -> str:
        """`cpu, 2 threads`, or `cpu, 1 thread, 2 slots`."""
        said = [self.device]
        if self.device == "cpu" and self.threads:
            said.append(f"{self.threads} thread{'s' if self.threads > 1 else ''}")
        if self.device == "cpu" and (self.cpu_slots or 1) > 1:
            said.append(f"{self.cpu_slots} slots")
        return ", ".join(said)


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
    """The settings with a test result and a value for this cost, cheapest first.

    Times and memory are only those of runs under one set of conditions, the most frequent; `other_conditions` tells
    about the others.
    """
    found, common = [], _commonest(rows, measure)
    for row in rows:
        runs = [run for run in row.runs if common is None or conditions(run) == common]
        costs = [cost for run in runs if (cost := cost_of(run, measure)) is not None]
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


def conditions(run: Run) -> Conditions:
    device = str(run.facts.get("device") or run.device or "unknown")
    threads, slots = (run.facts.get(name) for name in ("threads", "cpu_slots"))
    return Conditions(device, threads, slots) if device == "cpu" else Conditions(device, None, None)


def all_conditions(rows: Sequence[TrialRow]) -> tuple[str, ...]:
    """The conditions of the finished runs, in words, the most frequent first."""
    return tuple(dict.fromkeys(str(one) for one, _ in _counted(rows).most_common()))


def other_conditions(rows: Sequence[TrialRow], measure: str) -> str:
    """A sentence on the runs whose time or memory `cost_points` leaves out; "" if there are none."""
    common = _commonest(rows, measure)
    others = {one: count for one, count in _counted(rows).items() if one != common}
    if common is None or not others:
        return ""
    count = sum(others.values())
    named = "; ".join(str(one) if str(one) != str(common) else f"{one}, not all recorded" for one in others)
    return (
        f"Only runs on {common} are included: {count} {'run' if count == 1 else 'runs'} trained under other conditions "
        f"({named}), and their values are not comparable."
    )


def _commonest(rows: Sequence[TrialRow], measure: str) -> Conditions | None:
    """The conditions to which a measure is restricted; None if it does not depend on them."""
    counted = _counted(rows)
    return counted.most_common(1)[0][0] if counted and measure != "trainable" else None


def _counted(rows: Sequence[TrialRow]) -> Counter[Conditions]:
    return Counter(conditions(run) for row in rows for run in row.runs if run.status is RunStatus.FINISHED)
