"""What the store remembers, as frozen records. No SQL, no torch."""

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

# Metrics "update/<path of a target>": how far training moved its weight. One for each module, so in no list of metrics.
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
    device: str | None = None  # the slot it runs or ran on: cpu, cpu:1, mps, cuda:0
    reason: str | None = None  # why it failed, stopped early or was lost: one sentence
    weights_label: str | None = None  # "pretrained: ..." or "random weights"; known once the trainer built the network
    progress: Progress | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)  # versions, parameters, data counts: run.json of the trainer
    attempts: int = 0
    stop_requested_at_ms: int | None = None  # of its latest attempt
    kill_requested_at_ms: int | None = None  # it is to end at once, without a checkpoint
    sweep_id: str | None = None
    trial: int | None = None  # number of its setting in the sweep, from 0
    setting: Mapping[str, Any] = field(default_factory=dict)  # field of each axis -> value, as the sweep says it
    pruned_at_step: int | None = None  # the sweep gave it up here; it counts if the run was then stopped
    tags: tuple[str, ...] = ()  # in alphabetical order
    note: str = ""
    archived_at_ms: int | None = None  # None: shown in lists

    @property
    def earlier_ms(self) -> tuple[tuple[int, int], ...]:
        """Start and end of each attempt before the last one: one for each resume."""
        return tuple((start, end) for start, end in self.facts.get("earlier", ()))

    @property
    def seconds(self) -> float | None:
        """From start to end, without the time between an end and a resume; None while it runs or never started."""
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
    """A run as a line of a list, without its config: light, because a list may have 10,000 of them.

    Accuracies lie in [0, 1]; None is what was not measured (yet).
    """

    id: str
    title: str
    status: RunStatus
    device: str  # the slot it runs or ran on; before that, what it asked for
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
    progress: Progress | None  # None for a finished run too: it has done all
    valid: float | None  # best of all epochs
    valid_n: int | None
    test: float | None
    test_n: int | None
    earlier_ms: int = 0  # that it ran before it was resumed

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    @property
    def trains(self) -> str:
        """What trains beside the head, in short: "attention · 16 modules", "head alone", "BitFit"."""
        method = METHODS[self.method]
        if not method.takes_targets:
            return method.title
        count = f"{self.target_modules} module{'s' if self.target_modules > 1 else ''}"
        words = [self.target_set, count if self.target_modules else "head alone"]
        return " · ".join(filter(None, [*words, "" if self.method == "lora" else method.title]))

    @property
    def seconds(self) -> float | None:
        """From start to end, without the time between an end and a resume; None while it runs or never started."""
        if self.started_at_ms is None or self.ended_at_ms is None:
            return None
        return (self.earlier_ms + self.ended_at_ms - self.started_at_ms) / 1000


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs a list shows: those that meet everything said here.

    words: each occurs in title, backbone, data, target set, weights, a tag or the note, in any case of letters, or is
    four letters or more of the id.
    tags: it has all of them. archived: None is both.
    """

    words: str = ""
    statuses: Collection[RunStatus] = ()  # none: any
    tags: Collection[str] = ()
    sweep_id: str | None = None
    archived: bool | None = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Some lines of a list, and how many runs the whole list has."""

    rows: tuple[RunRow, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class QueueSettings:
    """How the queue of a workspace is set. paused_at_ms: None where runs are claimed. cpu_slots: runs beside each other
    on the CPU, at least 1."""

    paused_at_ms: int | None
    cpu_slots: int

    @property
    def is_paused(self) -> bool:
        return self.paused_at_ms is not None


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


class Origin(NamedTuple):
    """The run that another one is a clone of. is_retry: it had failed, and the clone is to make up for it."""

    run_id: str
    is_retry: bool


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


def checked_tags(tags: Collection[str]) -> tuple[str, ...]:
    """Tags as they are stored: trimmed, each once, in alphabetical order. Raises UserError naming the first bad one."""
    found = {tag.strip() for tag in tags}
    for tag in found:
        if not 1 <= len(tag) <= LONGEST_TAG or not tag.isprintable():
            raise UserError(f"{tag[:60]!r} cannot be a tag: a tag is one line of 1 to {LONGEST_TAG} characters.")
    return tuple(sorted(found, key=lambda tag: (tag.casefold(), tag)))


def checked_set_name(text: str) -> str:
    """The name of a target set as it is kept. Raises UserError."""
    name = " ".join(text.split())
    if not 1 <= len(name) <= LONGEST_SET_NAME or not name.isprintable():
        raise UserError(f"{name[:60]!r} cannot name a set: a name is one line of 1 to {LONGEST_SET_NAME} characters.")
    return name


def checked_note(text: str) -> str:
    """A note as it is stored, "" for none. Raises UserError if it is too long."""
    note = "\n".join(line.rstrip() for line in text.splitlines()).strip()
    if len(note) > LONGEST_NOTE:
        raise UserError(f"The note has {len(note):,} characters; {LONGEST_NOTE:,} are the most. Shorten it.")
    return note


class SweepRun(NamedTuple):
    """A run that a sweep queues. setting: field of each axis -> value; runs of one trial differ in their seed alone."""

    config: RunConfig
    trial: int
    setting: Mapping[str, Any]


class Attempt(NamedTuple):
    """nonce: names a run's latest attempt in its files. spool_offset: bytes of its spool that were ingested."""

    nonce: str | None
    spool_offset: int
