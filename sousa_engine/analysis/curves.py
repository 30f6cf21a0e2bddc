"""Curves made ready for drawing: one line a run and metric, smoothed on demand, gaps kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sousa_engine.records import Curve


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; y is None where the metric was no number. x: optimiser steps."""

    label: str
    x: tuple[int, ...]
    y: tuple[float | None, ...]


def line(label: str, curve: Curve, smoothing: float = 0.0) -> Line:
    return Line(label=label, x=curve.steps, y=smooth(curve.mean, smoothing))


def smooth(values: Sequence[float | None], weight: float) -> tuple[float | None, ...]:
    """Exponential moving average without the bias towards its start; a gap stays a gap and is passed over.

    weight: 0 (as it is) up to, not including, 1. Source: Kingma and Ba 2015, section 3 (bias correction).
    """
    if not 0 <= weight < 1:
        raise ValueError(f"smoothing = {weight!r} will not do: it lies between 0 and 1, 1 left out.")
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
