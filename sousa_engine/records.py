"""What the store remembers, as frozen records. No SQL, no torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sousa_engine.config import RunConfig


class RunStatus(enum.StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def is_over(self) -> bool:
        return self in {RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED, RunStatus.LOST}


class SweepStatus(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        return self not in {SweepStatus.RUNNING, SweepStatus.PAUSED}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. phase: "preparing" (features), "training", "testing"; done/total count that phase's units."""

    phase: str
    done: int
    total: int
    epoch: int | None = None
    max_epochs: int | None = None
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Last and best value of one metric of one run. n: clips it was computed on (None for training-step metrics)."""

    metric: str
    last: float | None
    last_step: int
    best: float | None
    best_step: int | None
    n: int | None


@dataclass(frozen=True, kw_only=True)
class Run:
    id: str
    config: RunConfig
    status: RunStatus
    created_at_ms: int
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    device: str | None = None  # the slot it runs or ran on: cpu, mps, cuda:0
    reason: str | None = None  # why it failed, stopped early or was lost: one sentence
    weights_label: str | None = None  # "pretrained: ..." or "random weights"; known once the trainer built the network
    progress: Progress | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # versions, parameters, data counts: run.json of the trainer
    launches: int = 0
    sweep_id: str | None = None
    trial: int | None = None  # number of its setting in the sweep, from 0
    setting: Mapping[str, Any] = field(default_factory=dict)  # field of each axis -> value, as the sweep says it
    pruned_at_step: int | None = None  # the sweep gave it up here; it counts if the run was then stopped

    @property
    def is_pruned(self) -> bool:
        return self.pruned_at_step is not None and self.status is RunStatus.STOPPED

    @property
    def title(self) -> str:
        return self.config.title

    @property
    def is_random(self) -> bool:
        return self.config.model.weights == "random"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """spec: what was asked, as sweep.SweepSpec takes it. Its runs carry its id."""

    id: str
    name: str
    spec: Mapping[str, Any]
    status: SweepStatus
    created_at_ms: int
    ended_at_ms: int | None = None
    reason: str | None = None  # why it failed or was stopped: one sentence


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One value of one metric at one optimiser step (from 1). value may be nan or inf: the store keeps which."""

    metric: str
    step: int
    value: float
    epoch: int | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over steps in buckets of `width` steps; mean/low/high are None where no finite value fell in."""

    metric: str
    width: int
    steps: tuple[int, ...]  # first step of each bucket
    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One clip of one split, as the best checkpoint saw it. probability: of the predicted class."""

    clip_id: str
    split: str
    label: str
    predicted: str
    probability: float
    label_probability: float


class ClipScore(NamedTuple):
    """How many of `runs` runs got a clip right. A tuple, not a dataclass: a sweep has tens of thousands."""

    clip_id: str
    label: str
    right: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run, for its log of events: queued, claimed, checkpoint, stop requested, ..."""

    at_ms: int
    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    name: str
    variant: str
    paths: tuple[str, ...]
    head: str
    saved_at_ms: int
