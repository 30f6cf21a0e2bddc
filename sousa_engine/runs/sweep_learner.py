"""Advance an open sweep by one step: report results, prune, ask Optuna for the next trial, end the sweep.

Optuna is imported inside the functions that use it: it is slow to import, and few supervisors and no page need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sousa_engine.analysis.sweeps import trials
from sousa_engine.core import sweep_spec
from sousa_engine.core.errors import PreflightError, UserError
from sousa_engine.core.records import Run, RunStatus, Sweep, SweepRun, SweepStatus
from sousa_engine.core.sweep_spec import SweepSpec
from sousa_engine.runs import preflight, prepare
from sousa_engine.runs.sweep_plan import METRIC, replicates, suggest, with_seed
from sousa_engine.store import Store
from sousa_engine.store.ledger import Ledger
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    import optuna


INVALID_IN_A_ROW = 10


def pause(store: Store, sweep_id: str) -> bool:
    """Hold queued runs and sample nothing new; active runs continue. False if the sweep was not running."""
    return store.sweeps.set_status(sweep_id, SweepStatus.PAUSED, leaving=[SweepStatus.RUNNING])


def step(store: Store, found: Sweep, slots: int) -> bool:
    """Advance one open sweep by one step. Returns whether it must be called again."""
    if found.status is SweepStatus.PAUSED:
        return False
    spec = sweep_spec.build(found.spec)
    if spec.learns and not _Learner(store, found, spec).step(slots):
        return True
    if store.sweeps.open_run_count(found.id):
        return True
    store.sweeps.set_status(found.id, SweepStatus.FINISHED, leaving=[SweepStatus.RUNNING])
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
            if frozen.number not in self._trials:  # sampled, but the supervisor was killed before it queued the runs
                self._queue(trial)
                still_open += 1
            elif not self._settle(trial, self._trials[frozen.number]):
                still_open += 1
        count = len(drawn)
        while count < (self._spec.trials or 0) and still_open < max(1, slots):
            if self._only_invalid():
                return True
            # Seeded by its number: a restarted supervisor must not sample the same settings again.
            self._study.sampler = _sampler(self._spec, count)
            still_open += self._queue(self._study.ask())
            count += 1
        return count >= (self._spec.trials or 0) and still_open == 0

    def _queue(self, trial: optuna.trial.Trial) -> bool:
        """Queue the runs of a sampled setting. False if the setting is invalid: then the trial has failed."""
        from optuna.trial import TrialState

        setting = {axis.field: suggest(trial, axis) for axis in self._spec.axes}
        try:
            config = prepare.prepare(sweep_spec.draft(self._spec.base, setting, self._spec.sets)).config
            errors = preflight.preflight(config, self._store.workspace).errors
            if errors:
                raise PreflightError(" ".join(check.detail for check in errors))
        except UserError as error:
            trial.set_user_attr("invalid", str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        runs = replicates(self._spec, trial.number, setting, config)
        # The first seed decides whether a setting is pruned: the other seeds wait for it.
        self._store.sweeps.extend(
            self._sweep.id, runs[:1] if self._spec.sampler == "asha" else runs, created_by="sweep"
        )
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
        last = self._study.get_trials(deepcopy=False)[-INVALID_IN_A_ROW:]
        why = [trial.user_attrs.get("invalid") for trial in last]
        if len(why) < INVALID_IN_A_ROW or not all(why):
            return False
        reason = f"The last {INVALID_IN_A_ROW} sampled settings were invalid. The last one: {why[-1]}"
        self._store.sweeps.set_status(self._sweep.id, SweepStatus.FAILED, leaving=[SweepStatus.RUNNING], reason=reason)
        return True


def study_file(workspace: Workspace, sweep_id: str) -> Path:
    """Optuna's own database of one sweep."""
    return workspace.runs / ".sweeps" / f"{sweep_id}.db"


def study(workspace: Workspace, found: Sweep, spec: SweepSpec) -> optuna.Study:
    """A sweep's Optuna study. Only the supervisor writes to it.

    RDBStorage, not the journal file, which a single torn line breaks for good.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = study_file(workspace, found.id)
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
    startup = min(10, max(3, (spec.trials or 0) // 3))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
