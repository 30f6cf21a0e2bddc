"""The runs of a sweep as trials: each is one setting with several seeds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sousa_engine.analysis.compare import parameters
from sousa_engine.analysis.significance import Proportion, wilson_of_mean
from sousa_engine.core import sweep_spec
from sousa_engine.core.errors import UserError
from sousa_engine.core.records import Run, RunStatus, Summary, Sweep


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A setting and the results of its seeds. Shares are in [0, 1]; None if nothing was measured.

    runs: the latest of each seed, by seed. valid: best valid accuracy of each run that has one. test: test accuracy of
    the finished runs.
    """

    number: int
    label: str
    setting: Mapping[str, Any]
    runs: tuple[Run, ...]
    valid: tuple[float, ...]
    test: tuple[float, ...]
    clips: int | None  # of the test split
    trainable: int | None

    @property
    def statuses(self) -> Counter[str]:
        """Status -> number of runs; a pruned run counts as "pruned"."""
        return Counter(status_word(run) for run in self.runs)

    @property
    def is_pruned(self) -> bool:
        return any(run.is_pruned for run in self.runs)

    @property
    def mean_valid(self) -> float | None:
        return fmean(self.valid) if self.valid else None

    @property
    def mean_test(self) -> float | None:
        return fmean(self.test) if self.test else None

    @property
    def test_interval(self) -> Proportion | None:
        """Wilson's interval of the mean. It reflects the sample of clips, not variation between seeds."""
        if self.mean_test is None or not self.clips:
            return None
        return wilson_of_mean(self.mean_test, self.clips)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Runs that failed for the same reason. cause: the reason of the first of them."""

    cause: str
    runs: tuple[Run, ...]

    @property
    def is_stop(self) -> bool:
        """Whether all runs were stopped by a user, so that nothing went wrong."""
        return all(run.status is RunStatus.STOPPED for run in self.runs)

    @property
    def is_of_targets(self) -> bool:
        """Whether other targets may fix it: the reason mentions modules or suggests names."""
        return bool(nearest_names(self.cause)) or bool(re.search(r"\b(target|module|rank)s?\b", self.cause))


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The progress of a sweep in runs. A run that was trained again counts once.

    to_come: the estimated number of runs not queued yet. A sweep that learns may sample invalid combinations, and ASHA
    trains the other seeds of a setting only if it was not pruned.
    """

    statuses: Counter[str]  # a pruned run counts as "pruned"
    over: int
    to_come: int

    @property
    def expected(self) -> int:
        return self.statuses.total() + self.to_come

    @property
    def failed(self) -> int:
        return self.statuses[RunStatus.FAILED.value] + self.statuses[RunStatus.LOST.value]


def tally(found: Sweep, runs: Sequence[Run]) -> Tally:
    """Counts the sweep's runs. Of one whose definition cannot be read, no further runs are expected."""
    by_trial = trials(runs)
    to_come = 0
    learns = found.spec.get("sampler") in sweep_spec.LEARNING and not found.status.is_over
    if learns and not unreadable(found):
        spec = sweep_spec.build(found.spec)
        to_come = len(spec.seeds) * max(0, spec.trial_count - len(by_trial))
        for of_trial in by_trial.values():
            if not any(run.status.is_over and run.status is not RunStatus.FINISHED for run in of_trial):
                to_come += max(0, len(spec.seeds) - len(of_trial))
    now = latest(runs)
    return Tally(
        statuses=Counter(status_word(run) for run in now), over=sum(run.status.is_over for run in now), to_come=to_come
    )


def unreadable(found: Sweep) -> str:
    """Why this version cannot read the definition of a sweep; empty if it can."""
    try:
        sweep_spec.build(found.spec)
    except UserError as error:
        return str(error)
    return ""


def seconds_left(runs: Sequence[Run], to_come: int, now_ms: int) -> float | None:
    """Seconds until all runs have ended; None before the first one has finished.

    The estimate uses the durations of finished and pruned runs, per backbone, and as many runs at a time as now.
    """
    took: dict[str, list[float]] = {}
    for run in runs:
        if (run.status is RunStatus.FINISHED or run.is_pruned) and run.seconds and not run.unreadable:
            took.setdefault(run.config.model.variant, []).append(run.seconds)
    if not took:
        return None
    usual = fmean(seconds for of_one in took.values() for seconds in of_one)
    left, at_a_time = usual * to_come, 0
    for run in latest(runs):
        if run.status.is_over:
            continue
        total = fmean(took.get(run.config.model.variant, [usual]))
        gone = (now_ms - run.started_at_ms) / 1000 if run.started_at_ms else 0.0
        left += max(0.0, total - gone)
        at_a_time += run.status is not RunStatus.QUEUED
    return left / max(1, at_a_time)


def trials(runs: Sequence[Run]) -> dict[int, tuple[Run, ...]]:
    """Trial number -> the latest run of each seed, by seed. Runs that cannot be read are in no trial."""
    found: dict[int, dict[int, Run]] = {}
    for run in (run for run in runs if not run.unreadable):
        found.setdefault(run.trial or 0, {})[run.config.seed] = run
    return {number: tuple(by_seed[seed] for seed in sorted(by_seed)) for number, by_seed in sorted(found.items())}


def latest(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The runs without those that a later run replaced."""
    return tuple(run for of_trial in trials(runs).values() for run in of_trial)


def trial_rows(runs: Sequence[Run], summaries: Mapping[str, Mapping[str, Summary]]) -> tuple[TrialRow, ...]:
    """One row per trial, by number. summaries: run id -> metric name -> Summary."""
    return tuple(
        trial_row(number, of_trial, of_trial[0].setting, summaries) for number, of_trial in trials(runs).items()
    )


def trial_row(
    number: int, runs: tuple[Run, ...], setting: Mapping[str, Any], summaries: Mapping[str, Mapping[str, Summary]]
) -> TrialRow:
    """The row of one setting; `runs` are its seeds."""
    valid = [_value(summaries, run, "valid/accuracy", best=True) for run in runs]
    test = [_value(summaries, run, "test/accuracy") for run in runs if run.status is RunStatus.FINISHED]
    clips = (summaries.get(run.id, {}).get("test/accuracy") for run in runs)
    counts = (parameters(run).get("trainable") for run in runs)
    return TrialRow(
        number=number,
        label=sweep_spec.label(dict(setting)),
        setting=setting,
        runs=runs,
        valid=tuple(value for value in valid if value is not None),
        test=tuple(value for value in test if value is not None),
        clips=next((summary.n for summary in clips if summary is not None), None),
        trainable=next((count for count in counts if count is not None), None),
    )


def best_first(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Highest mean valid accuracy first; those without one last. Ties keep their order.

    Test accuracy is never used: a setting chosen by its test clips would look better on them than it is.
    """
    return sorted(rows, key=lambda row: -1.0 if row.mean_valid is None else row.mean_valid, reverse=True)


def failures(runs: Sequence[Run], *, stopped: bool = False) -> tuple[Failure, ...]:
    """The failed runs of a sweep that were not trained again, by cause. stopped: include runs stopped by users."""
    return by_cause(latest(runs), stopped=stopped)


def by_cause(runs: Sequence[Run], *, stopped: bool = False) -> tuple[Failure, ...]:
    """The failed and lost runs. Reasons that differ only in numbers and ids are one cause."""
    causes: dict[str, list[Run]] = {}
    for run in runs:
        unfinished = stopped and run.status is RunStatus.STOPPED and not run.is_pruned
        if unfinished or run.status in (RunStatus.FAILED, RunStatus.LOST):
            causes.setdefault(_same_cause(run.reason or ""), []).append(run)
    return tuple(
        Failure(cause=found[0].reason or "No reason was recorded.", runs=tuple(found))
        for found in sorted(causes.values(), key=len, reverse=True)
    )


def out_of_competition(runs: Sequence[Run]) -> dict[str, str]:
    """Run id -> why the verdict excludes it (it was pruned), for compare.conclude."""
    return {run.id: f"it was pruned at step {run.pruned_at_step:,}" for run in runs if run.is_pruned}


def nearest_names(cause: str) -> list[str]:
    """The names that a reason suggests: "... Nearest: qkv, attention.out_proj." Empty if there are none."""
    offered = re.search(r"[Nn]earest:? (.+?)(?:\.(?=\s|$)|$)", cause)
    return [name.strip(" `'") for name in offered[1].split(",")] if offered else []


def status_word(run: Run) -> str:
    """The status of a run; "pruned" if its sweep pruned it."""
    return "pruned" if run.is_pruned else run.status.value


def _value(
    summaries: Mapping[str, Mapping[str, Summary]], run: Run, metric: str, *, best: bool = False
) -> float | None:
    summary = summaries.get(run.id, {}).get(metric)
    if summary is None:
        return None
    return summary.best if best else summary.last


def _same_cause(reason: str) -> str:
    """A reason without the numbers and ids that differ from run to run."""
    return re.sub(r"\d[\w.-]*", "#", reason)
