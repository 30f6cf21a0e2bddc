"""Curves prepared for drawing: over steps, epochs or minutes, smoothed if wanted, seeds as a mean with a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from sousa_engine.core.records import Curve, Run

AXES = ("step", "epoch", "minutes")  # of a chart, from left to right


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; y is None where the metric is NaN or infinite. x: steps, epochs or minutes.

    low, high: the band around the line, or (). group: lines of the same group share a colour.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    group: int = 0


@dataclass(frozen=True, kw_only=True)
class SeedCurve:
    """A curve of a run, with the position of each step on the x axis."""

    curve: Curve
    x: tuple[float, ...]


def placed(run: Run, curve: Curve, axis: str, moments: Mapping[int, int] | None = None) -> SeedCurve | None:
    """The curve over one of AXES; None if the run did not record what that axis needs.

    Epochs are computed from the number of train clips and the batch size: 1.5 is halfway through the second epoch.
    Minutes count from the start of the run, including preparation but not the time between an end and a resume.
    moments: step -> ms since 1970, needed for minutes.
    """
    if axis == "step":
        return SeedCurve(curve=curve, x=curve.steps)
    if axis == "epoch":
        clips = (run.facts.get("data") or {}).get("clips", {}).get("train")
        if not clips:
            return None
        each = run.config.training.steps_per_epoch(clips)
        return SeedCurve(curve=curve, x=tuple(step / each for step in curve.steps))
    start = run.started_at_ms
    if start is None or moments is None or any(step not in moments for step in curve.steps):
        return None
    return SeedCurve(curve=curve, x=tuple(_ran_ms(run, start, moments[step]) / 60_000 for step in curve.steps))


def seed_line(label: str, seeds: Sequence[SeedCurve], smoothing: float = 0.0, group: int = 0) -> Line:
    """The mean over the seeds of a setting, with a band from the lowest to the highest; one seed has no band.

    Each seed is smoothed separately. Where some seeds have no value (one stopped earlier), the others give the mean.
    """
    width = max((seed.curve.width for seed in seeds), default=1)
    buckets = [_buckets(seed, width, smoothing) for seed in seeds]
    order = sorted({at for of_seed in buckets for at in of_seed})
    present = [[of_seed[at] for of_seed in buckets if at in of_seed] for at in order]
    found = [[y for _, y in some if y is not None] for some in present]
    has_band = len(seeds) > 1
    return Line(
        label=label,
        x=tuple(fmean(x for x, _ in some) for some in present),
        y=tuple(fmean(some) if some else None for some in found),
        low=tuple(min(some, default=None) for some in found) if has_band else (),
        high=tuple(max(some, default=None) for some in found) if has_band else (),
        group=group,
    )


def smooth(values: Sequence[float | None], weight: float) -> tuple[float | None, ...]:
    """Exponential moving average with bias correction; gaps remain gaps and do not count.

    weight: from 0 (unchanged) to just below 1. Source: Kingma and Ba 2015, section 3 (bias correction).
    """
    if not 0 <= weight < 1:
        raise ValueError(f"smoothing must be at least 0 and less than 1 (got {weight!r}).")
    smoothed: list[float | None] = []
    mean, mass = 0.0, 0.0
    for value in values:
        if value is None:
            smoothed.append(None)
            continue
        mean = weight * mean + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(mean / mass)
    return tuple(smoothed)


def _ran_ms(run: Run, start_ms: int, at_ms: int) -> int:
    """How long the run had been running by then, over all attempts."""
    before = sum(max(0, min(end, at_ms) - start) for start, end in run.earlier_ms)
    return before + max(0, at_ms - start_ms)


def _buckets(seed: SeedCurve, width: int, smoothing: float) -> dict[int, tuple[float, float | None]]:
    """Bucket of `width` steps -> (mean x, mean y); the buckets of the curve may be narrower."""
    found: dict[int, list[tuple[float, float | None]]] = {}
    for step, x, y in zip(seed.curve.steps, seed.x, smooth(seed.curve.mean, smoothing), strict=True):
        found.setdefault(step // width, []).append((x, y))
    means = {}
    for at, points in found.items():
        known = [y for _, y in points if y is not None]
        means[at] = (fmean(x for x, _ in points), fmean(known) if known else None)
    return means
