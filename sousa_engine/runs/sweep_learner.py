"""Advance an open sweep by one step: report results, prune, ask Optuna for the next trial, end the sweep.

Optuna is imported inside the functions that use it: it is slow to import, and few supervisors and no page need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sousa_engine.analysis.sweeps import trials
from sousa_engine.core import identity, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import PreflightError, UserError
from sousa_engine.core.records import Run, RunStatus, Sweep, SweepRun, SweepStatus
from sousa_engine.core.sweep_spec import Setting, SweepSpec
from sousa_engine.runs import preflight, prepare
from sousa_engine.runs.sweep_plan import METRIC, MISSES, others, params, replicates, setting_of, suggest, with_seed
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    import optuna


INVALID_IN_A_ROW = 10
REPEATS_IN_A_ROW = 3  # then a setting that was never sampled is proposed
_KEY, _REPEATS, _QUEUED = "reads", "repeats trial", "queued"  # attributes of a trial in the study
_EXHAUSTED = "exhausted"  # of the study


def pause(store: Store, sweep_id: str) -> bool:
    """Hold queued runs and sample nothing new; active runs continue. False if the sweep was not running."""
    return store.sweeps.set_status(sweep_id, SweepStatus.PAUSED, leaving=[SweepStatus.RUNNING])


def step(store: Store, found: Sweep, slots: int) -> bool:
    """Advance one open sweep by one step. Returns whether it must be called again."""
    if found.status is SweepStatus.PAUSED:
        return False
    spec = sweep_spec.build(found.spec)
    learner = _Learner(store, found, spec) if spec.learns else None
    if learner and not learner.step(slots):
        return True
    if store.sweeps.open_run_count(found.id):
        return True
    reason = learner.exhausted if learner else None
    store.sweeps.set_status(found.id, SweepStatus.FINISHED, leaving=[SweepStatus.RUNNING], reason=reason)
    return False


class _Learner:
    """One step of a sweep that learns. Everything is read from the study and from the runs; no state is kept."""

    def __init__(self, store: Store, found: Sweep, spec: SweepSpec):
        self._store, self._sweep, self._spec = store, found, spec
        self._trials = trials(store.sweeps.runs(found.id))
        self._study = study(store.workspace, found, spec)

    def step(self, slots: int) -> bool:
        """True once all trials are sampled and their results reported."""
        from optuna.trial import Trial, TrialState

        drawn = self._study.get_trials(deepcopy=False)
        still_open = 0
        for frozen in drawn:
            if frozen.state is not TrialState.RUNNING:
                continue
            trial = Trial(self._study, frozen._trial_id)
            if frozen.number in self._trials:
                still_open += not self._settle(trial, self._trials[frozen.number])
            elif _QUEUED in frozen.user_attrs or frozen.number < len(drawn) - 1:  # its runs were deleted
                self._study.tell(trial, state=TrialState.FAIL)
            else:  # sampled, but the supervisor was killed before it queued the runs
                still_open += self._queue(trial) is True
        while not self.exhausted and self._sampled() < self._spec.trial_count and still_open < max(1, slots):
            if self._only_invalid():
                return True
            still_open += self._sample()
        return (bool(self.exhausted) or self._sampled() >= self._spec.trial_count) and still_open == 0

    @property
    def exhausted(self) -> str | None:
        """Why no other setting can be sampled, if none can."""
        return self._study.user_attrs.get(_EXHAUSTED)

    def _sample(self) -> bool:
        """Ask for a setting that is new. False if it is invalid or there is none."""
        for attempt in range(REPEATS_IN_A_ROW + 1):
            if attempt == REPEATS_IN_A_ROW and not self._propose():
                break
            # Seeded by its number: a restarted supervisor must not sample the same settings again.
            self._study.sampler = _sampler(self._spec, len(self._study.get_trials(deepcopy=False)))
            queued = self._queue(self._study.ask())
            if queued is not None:
                return queued
        self._study.set_user_attr(
            _EXHAUSTED,
            f"No other setting was found after {self._sampled():,} different ones; "
            f"{self._spec.trials:,} trials were requested.",
        )
        return False

    def _propose(self) -> bool:
        """Make a setting that was never sampled the next trial. False if none is found."""
        drawn = self._study.get_trials(deepcopy=False)
        seen = {sweep_spec.same(setting_of(self._spec.axes, trial.params)) for trial in drawn}
        keys = {self._key(trial) for trial in drawn}
        for setting in islice(others(self._spec, seen, seed=len(drawn)), MISSES):
            if self._prepared(setting)[0] not in keys:
                self._study.enqueue_trial(params(self._spec.axes, setting))
                return True
        return False

    def _sampled(self) -> int:
        """The number of different settings so far, valid or not."""
        return len(self._different())

    def _different(self) -> list[optuna.trial.FrozenTrial]:
        from optuna.trial import TrialState

        drawn = self._study.get_trials(deepcopy=False)
        return [one for one in drawn if one.state is not TrialState.WAITING and _REPEATS not in one.user_attrs]

    def _key(self, trial: optuna.trial.FrozenTrial) -> str | None:
        """What the runs of a trial read: see `identity`. Kept in the study, because runs can be deleted."""
        runs = self._trials.get(trial.number)
        return trial.user_attrs.get(_KEY) or (identity.key(runs[0].config) if runs else None)

    def _prepared(self, setting: Setting) -> tuple[str, RunConfig | UserError]:
        """What the runs of a setting read, and their config or, if it is invalid, the reason."""
        try:
            config = prepare.prepare(sweep_spec.draft(self._spec.base, setting, self._spec.sets)).config
            errors = preflight.preflight(config, self._store.workspace).errors
            if errors:
                raise PreflightError(" ".join(check.detail for check in errors))
        except UserError as error:
            return sweep_spec.same(setting), error
        return identity.key(config), config

    def _queue(self, trial: optuna.trial.Trial) -> bool | None:
        """Queue the runs of a sampled setting. False if it is invalid, None if it repeats another trial.

        The trial has failed then.
        """
        from optuna.trial import TrialState

        setting = {axis.field: suggest(trial, axis) for axis in self._spec.axes}
        key, config = self._prepared(setting)
        first = next((one for one in self._different() if self._key(one) == key and one.number != trial.number), None)
        if first is not None:
            trial.set_user_attr(_REPEATS, first.number)
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr(_KEY, key)
        try:
            if isinstance(config, UserError):
                raise config
            runs = replicates(self._spec, trial.number, setting, config)
        except UserError as error:
            trial.set_user_attr("invalid", str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        # The first seed decides whether a setting is pruned: the other seeds wait for it.
        self._store.sweeps.extend(
            self._sweep.id, runs[:1] if self._spec.sampler == "asha" else runs, created_by="sweep"
        )
        trial.set_user_attr(_QUEUED, True)
        return True

    def _settle(self, trial: optuna.trial.Trial, runs: Sequence[Run]) -> bool:
        """Report the results of a trial's runs so far. True if the trial is done."""
        from optuna.trial import TrialState

        first = runs[0]
        if self._spec.sampler == "asha":
            self._prune_if_weak(trial, first)
        if any(run.status.is_over and run.status is not RunStatus.FINISHED and not run.is_pruned for run in runs):
            self._study.tell(trial, state=TrialState.FAIL)
            return True
        if first.is_pruned:
            self._study.tell(trial, state=TrialState.PRUNED)
            return True
        if any(not run.status.is_over for run in runs):
            return False
        missing = [seed for seed in self._spec.seeds if seed not in {run.config.seed for run in runs}]
        if missing:
            more = [SweepRun(with_seed(first.config, seed), first.trial or 0, first.setting) for seed in missing]
            self._store.sweeps.extend(self._sweep.id, more, created_by="sweep")
            return False
        values = [self._best(run) for run in runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, fmean(known))
        return True

    def _prune_if_weak(self, trial: optuna.trial.Trial, run: Run) -> None:
        if run.status is not RunStatus.RUNNING:
            return
        curve = self._store.metrics.curve(run.id, METRIC)
        points = [(at, value) for at, value in zip(curve.steps, curve.mean, strict=True) if value is not None]
        told = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for epoch, (at, value) in enumerate(points, start=1):
            if epoch in told:
                continue
            trial.report(value, epoch)
            if epoch < run.config.training.max_epochs and trial.should_prune():
                reason = (
                    f"Pruned after epoch {epoch} (step {at}): {METRIC} {value:.1%} was not in the top third of the "
                    "trials that got this far."
                )
                Ledger(self._store).prune(run.id, at, reason)
                return

    def _best(self, run: Run) -> float | None:
        summary = self._store.metrics.summaries([run.id])[run.id].get(METRIC)
        return summary.best if summary else None

    def _only_invalid(self) -> bool:
        """If all recent settings were invalid, the sweep fails and says why, instead of sampling forever."""
        last = self._different()[-INVALID_IN_A_ROW:]
        why = [trial.user_attrs.get("invalid") for trial in last]
        if len(why) < INVALID_IN_A_ROW or not all(why):
            return False
        reason = f"The last {INVALID_IN_A_ROW} sampled settings were invalid. The last one: {why[-1]}"
        self._store.sweeps.set_status(self._sweep.id, SweepStatus.FAILED, leaving=[SweepStatus.RUNNING], reason=reason)
        return True


def study(workspace: Workspace, found: Sweep, spec: SweepSpec) -> optuna.Study:
    """A sweep's Optuna study. Only the supervisor writes to it.

    RDBStorage, not the journal file, which a single torn line breaks for good.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = workspace.study(found.id)
    file.parent.mkdir(exist_ok=True)
    pruner: Any = optuna.pruners.NopPruner()
    if spec.sampler == "asha":
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return optuna.create_study(
        storage=_storage(file),
        study_name=found.id,
        sampler=_sampler(spec, 0),
        pruner=pruner,
        direction="maximize",
        load_if_exists=True,
    )


@lru_cache(maxsize=8)
def _storage(file: Path) -> optuna.storages.RDBStorage:
    """Kept open: checking its tables costs 0.1 s."""
    import optuna

    return optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 30}})


def _sampler(spec: SweepSpec, drawn: int) -> optuna.samplers.BaseSampler:
    import optuna

    seed = (spec.sampler_seed * 1_000_003 + drawn) % 2**31
    if spec.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    startup = min(10, max(3, spec.trial_count // 3))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
