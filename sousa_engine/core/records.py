"""Frozen records of everything the store holds. No SQL, no torch."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import UserError
from sousa_engine.core.methods import METHODS

LONGEST_TAG, LONGEST_SET_NAME, LONGEST_NOTE = 40, 80, 4000  # characters
MOST_CPU_SLOTS = 64

# Metrics "update/<path of a target>": relative change of a weight. Not in lists of metrics, as there is one per module.
UPDATE = "update/"


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
    """Progress of a run. phase: "preparing" (features), "training" or "testing"; done and total count its units."""

    phase: str
    done: int
    total: int
    epoch: int | None = None
    max_epochs: int | None = None
    eta_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Last and best value of one metric of one run. n: its number of clips (None for training steps)."""

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
    device: str | None = None  # the slot it runs or ran on: cpu, cpu:1, mps, cuda:0
    reason: str | None = None  # why it failed, stopped early or was lost: one sentence
    weights_label: str | None = None  # "pretrained: ..." or "random weights"; known once the trainer built the network
    progress: Progress | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # versions, parameters, data counts: run.json of the trainer
    attempts: int = 0
    stop_requested_at_ms: int | None = None  # of its latest attempt
    kill_requested_at_ms: int | None = None  # it must end now, without a checkpoint
    sweep_id: str | None = None
    trial: int | None = None  # number of its setting in the sweep, from 0
    setting: Mapping[str, Any] = field(default_factory=dict)  # field of each axis -> value, as in the sweep
    pruned_at_step: int | None = None  # the sweep pruned it here; valid only if the run was then stopped
    tags: tuple[str, ...] = ()  # in alphabetical order
    note: str = ""
    archived_at_ms: int | None = None  # None: shown in lists

    @property
    def earlier_ms(self) -> tuple[tuple[int, int], ...]:
        """Start and end of each attempt before the last one: one for each resume."""
        return tuple((start, end) for start, end in self.facts.get("earlier", ()))

    @property
    def seconds(self) -> float | None:
        """Seconds from start to end, without the time between an end and a resume; None if it has not both."""
        if self.started_at_ms is None or self.ended_at_ms is None:
            return None
        return sum(end - start for start, end in (*self.earlier_ms, (self.started_at_ms, self.ended_at_ms))) / 1000

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
class RunRow:
    """A run as a line of a list. It has no config, because a list may have 10,000 lines.

    Accuracies are in [0, 1]; None means not measured (yet).
    """

    id: str
    title: str
    status: RunStatus
    device: str  # the slot it runs or ran on; before that, the requested device
    backbone: str
    weights: str  # pretrained, random, or the path of a file
    dataset: str  # its name
    method: str  # lora, dora, bitfit, ...
    target_set: str
    target_modules: int
    seed: int
    trainable: int | None
    sweep_id: str | None
    created_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    archived_at_ms: int | None
    tags: tuple[str, ...]
    note: str
    progress: Progress | None  # None for a finished run too
    valid: float | None  # best of all epochs
    valid_n: int | None
    test: float | None
    test_n: int | None
    earlier_ms: int = 0  # time it ran before it was resumed

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    @property
    def trains(self) -> str:
        """Short summary of the trainable parameters besides the head: "attention · 16 modules", "BitFit"."""
        method = METHODS[self.method]
        if not method.takes_targets:
            return method.title
        count = f"{self.target_modules} module{'s' if self.target_modules > 1 else ''}"
        words = [self.target_set, count if self.target_modules else "head alone"]
        return " · ".join(filter(None, [*words, "" if self.method == "lora" else method.title]))

    @property
    def seconds(self) -> float | None:
        """Seconds from start to end, without the time between an end and a resume; None if it has not both."""
        if self.started_at_ms is None or self.ended_at_ms is None:
            return None
        return (self.earlier_ms + self.ended_at_ms - self.started_at_ms) / 1000


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs a list shows: those that meet all conditions.

    words: each occurs, in upper or lower case, in the title, backbone, data, target set, weights, a tag or the note, or
    is a part of the id with at least four characters. tags: the run has all of them. archived: None means both.
    """

    words: str = ""
    statuses: Collection[RunStatus] = ()  # none: any
    tags: Collection[str] = ()
    sweep_id: str | None = None
    archived: bool | None = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Some lines of a list, and the number of runs in the complete list."""

    rows: tuple[RunRow, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """The state of the queue. paused_at_ms: None if not paused. cpu_slots: how many runs may train on the CPU at the
    same time, at least 1."""

    paused_at_ms: int | None
    cpu_slots: int

    @property
    def is_paused(self) -> bool:
        return self.paused_at_ms is not None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """spec: its definition, as fields of sweep_spec.SweepSpec. Its runs have its id."""

    id: str
    name: str
    spec: Mapping[str, Any]
    status: SweepStatus
    created_at_ms: int
    ended_at_ms: int | None = None
    reason: str | None = None  # why it failed, was stopped or sampled fewer settings: one sentence
    note: str = ""
    archived_at_ms: int | None = None  # None: shown in lists


@dataclass(frozen=True, kw_only=True)
class MetricPoint:
    """One value of one metric at one optimiser step (from 1). value may be nan or inf; the store keeps which."""

    metric: str
    step: int
    value: float
    epoch: int | None = None
    n: int | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over steps in buckets of `width` steps; mean, low, high: None for a bucket without finite values."""

    metric: str
    width: int
    steps: tuple[int, ...]  # first step of each bucket
    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of the best checkpoint for one clip. probability: of the predicted class."""

    clip_id: str
    split: str
    label: str
    predicted: str
    probability: float
    label_probability: float


class Origin(NamedTuple):
    """The run that another one is a clone of. is_retry: the run had failed, and the clone replaces it."""

    run_id: str
    is_retry: bool


class ClipScore(NamedTuple):
    """How many of `runs` runs were right on a clip. A tuple, because a sweep has tens of thousands of them."""

    clip_id: str
    label: str
    right: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """An entry in the event log of a run: queued, claimed, checkpoint, stop requested, ..."""

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


def checked_tags(tags: Collection[str]) -> tuple[str, ...]:
    """Tags as stored: trimmed, unique, in alphabetical order. Raises UserError for the first invalid one."""
    found = {tag.strip() for tag in tags}
    for tag in found:
        if not 1 <= len(tag) <= LONGEST_TAG or not tag.isprintable():
            raise UserError(f"{tag[:60]!r} cannot be a tag: a tag is one line of 1 to {LONGEST_TAG} characters.")
    return tuple(sorted(found, key=lambda tag: (tag.casefold(), tag)))


def checked_set_name(text: str) -> str:
    """The name of a target set as stored. Raises UserError if it is invalid."""
    name = " ".join(text.split())
    if not 1 <= len(name) <= LONGEST_SET_NAME or not name.isprintable():
        raise UserError(f"{name[:60]!r} cannot name a set: a name is one line of 1 to {LONGEST_SET_NAME} characters.")
    return name


def checked_note(text: str) -> str:
    """A note as stored; "" means no note. Raises UserError if it is too long."""
    note = "\n".join(line.rstrip() for line in text.splitlines()).strip()
    if len(note) > LONGEST_NOTE:
        raise UserError(f"The note has {len(note):,} characters; the limit is {LONGEST_NOTE:,}. Shorten it.")
    return note


class SweepRun(NamedTuple):
    """A run that a sweep queues. setting: field of each axis -> value; runs of one trial differ only in their seed."""

    config: RunConfig
    trial: int
    setting: Mapping[str, Any]


class Attempt(NamedTuple):
    """nonce: names a run's latest attempt in its files. spool_offset: bytes of its spool that were ingested."""

    nonce: str | None
    spool_offset: int
