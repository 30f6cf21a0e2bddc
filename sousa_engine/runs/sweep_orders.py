"""Plan, start and steer sweeps. What was asked stands in runs.db, what Optuna drew in a SQLite file of its own.

A grid and a random sweep queue all their runs at once. One that learns (tpe, asha) is fed by the supervisor, which
calls `step` each second: it may be killed between any two lines, and the next one goes on from what the files say.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from sousa_engine import backbones, targets
from sousa_engine.analysis.layers import ablations
from sousa_engine.analysis.sweeps import trials
from sousa_engine.core import sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, PreflightError, UserError
from sousa_engine.core.records import Run, RunStatus, Sweep, SweepStatus
from sousa_engine.core.sweep_spec import MOST_LETTERS, Axis, Setting, SweepSpec
from sousa_engine.runs import orders, supervisor, timing
from sousa_engine.store import Store, SweepRun
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    import optuna

METRIC = "valid/accuracy"  # the test split is for the comparison at the end, never for drawing or pruning
INVALID_IN_A_ROW = 10
_OPEN = (SweepStatus.RUNNING, SweepStatus.PAUSED)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why these settings could only fail: found by the checks of a single run."""

    message: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep would do. runs: what is known by now; a sweep that learns draws the rest as it goes.

    seconds: of all runs, one after another, from earlier runs and probes; None while there are `untimed` ones: a config
    of each kind that was neither trained nor probed here. disk_bytes: what the runs' folders will hold, roughly.
    """

    spec: SweepSpec
    runs: tuple[SweepRun, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    run_count: int
    seconds: float | None
    untimed: tuple[RunConfig, ...]
    disk_bytes: int


# Before


def plan(spec: SweepSpec, workspace: Workspace) -> Plan:
    """Every setting looked at as a single run would be. Raises PreflightError if there are fewer than asked for."""
    settings = sweep_spec.combinations(spec.axes) if spec.sampler != "random" else _drawn(spec)
    if spec.learns:
        settings = settings[: sweep_spec.MOST_RUNS]
    checked: dict[str, orders.Preflight] = {}
    runs: list[SweepRun] = []
    causes: dict[str, list[Setting]] = {}
    notes: dict[str, None] = {}
    for number, setting in enumerate(settings):
        try:
            prepared = orders.prepare(sweep_spec.draft(spec.base, setting, spec.sets))
            found = _looked_at(prepared.config, workspace, checked)
        except UserError as error:
            causes.setdefault(str(error), []).append(setting)
            continue
        notes |= dict.fromkeys(prepared.notes)
        if found.errors:
            causes.setdefault(" ".join(check.detail for check in found.errors), []).append(setting)
        else:
            runs += _replicates(spec, number, setting, prepared.config)
    problems = tuple(Problem(message=cause, settings=tuple(where)) for cause, where in causes.items())
    with _store_if_any(workspace) as store:
        earlier = store.runs(RunStatus.FINISHED, limit=500) if store else ()
    seconds, untimed = _predicted(runs, earlier, checked, workspace)
    share = spec.run_count / len(runs) if spec.learns and runs else 1.0
    return Plan(
        spec=spec,
        runs=() if spec.learns else tuple(runs),
        problems=problems,
        notes=tuple(notes),
        run_count=spec.run_count if spec.learns else len(runs),
        seconds=None if seconds is None else seconds * share,
        untimed=untimed,
        disk_bytes=round(share * sum(_folder_bytes(run.config) for run in runs)),
    )


def ablation(variant: str, entries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> module names: a target set with and without its parts (analysis.layers), as `sets` of a sweep.

    entries: names, as launch.resolve reads them. Raises UnknownNameError, TargetError; ConfigError if the set has no
    parts.
    """
    outline = targets.load_outline(backbones.variant(variant).name)
    sets = ablations(outline, targets.resolve_sets(outline, list(entries)).paths)
    if len(sets) < 2:
        raise ConfigError(
            f"{sweep_spec.show(list(entries))} has no parts in {variant} that could be left out: an ablation takes "
            "modules of two roles, or of two layers."
        )
    return {name: tuple(targets.short_names(outline, paths)) for name, paths in sets.items()}


def ablation_of(config: RunConfig) -> SweepSpec:
    """The sweep that ablates a run's targets: its settings, three seeds; ranks of single targets are left out.

    Raises ConfigError, TargetError as `ablation` does.
    """
    base = orders.to_draft(config)
    for name in ("name", "seed"):
        base.pop(name, None)
    for part, leaf in (("model", "variant"), ("lora", "targets"), ("lora", "target_set"), ("lora", "rank_pattern")):
        base.get(part, {}).pop(leaf, None)
    variant = config.model.variant
    sets = ablation(variant, [target.path for target in config.lora.targets])
    return sweep_spec.build(
        {
            "name": f"ablation of {config.name or config.lora.target_set or variant}"[:MOST_LETTERS],
            "axes": {"model": [variant], "targets": list(sets)},
            "sets": sets,
            "base": {part: values for part, values in base.items() if values != {}},
        }
    )


def start(
    workspace: Workspace,
    spec: SweepSpec,
    *,
    created_by: str,
    leave_out_invalid: bool = False,
    form_token: str | None = None,
) -> Sweep:
    """Queue a sweep and see that a supervisor is there. Raises PreflightError naming what could only fail.

    leave_out_invalid: start without the settings that the plan names as problems. form_token: see launch.start.
    """
    found = plan(spec, workspace)
    if found.problems and not (leave_out_invalid and found.runs):
        raise PreflightError(describe(found.problems))
    with Store.open(workspace) as store:
        made = store.add_sweep(
            spec.title, spec.model_dump(mode="json"), found.runs, created_by=created_by, form_token=form_token
        )
    supervisor.ensure(workspace)
    return made


def describe(problems: Sequence[Problem]) -> str:
    """A line for each cause, with how many settings it hits and the first of them."""
    parts = []
    for problem in problems:
        count = len(problem.settings)
        where = (
            f"{count} settings, e.g. {sweep_spec.label(problem.settings[0])}"
            if count > 1
            else sweep_spec.label(problem.settings[0])
        )
        parts.append(f"{where}: {problem.message}")
    return "\n".join(parts)


# While it runs: pages and the command line


def pause(store: Store, sweep_id: str) -> bool:
    """Queued runs wait, nothing new is drawn; what trains goes on. False if it was not running."""
    return store.set_sweep_status(sweep_id, SweepStatus.PAUSED, leaving=[SweepStatus.RUNNING])


def resume(store: Store, sweep_id: str) -> bool:
    """False if it was not paused."""
    changed = store.set_sweep_status(sweep_id, SweepStatus.RUNNING, leaving=[SweepStatus.PAUSED])
    supervisor.ensure(store.workspace)
    return changed


def stop(store: Store, sweep_id: str) -> bool:
    """Queued runs leave the queue, running ones save and stop. False if it was over already."""
    changed = store.set_sweep_status(sweep_id, SweepStatus.STOPPED, leaving=_OPEN, reason="Stopped by hand.")
    for run in store.sweep_runs(sweep_id) if changed else ():
        if not run.status.is_over:
            store.request_stop(run.id)
    supervisor.ensure(store.workspace)
    return changed


def add_seeds(store: Store, found: Sweep, seeds: Sequence[int], *, created_by: str) -> tuple[str, ...]:
    """Train every setting (but pruned ones) with more seeds. Returns the new runs' ids. Raises ConfigError."""
    spec = sweep_spec.build(found.spec)
    wider = sweep_spec.build({**found.spec, "seeds": [*spec.seeds, *seeds]})  # a seed twice is refused there
    more = []
    for runs in trials(store.sweep_runs(found.id)).values():
        if not any(run.is_pruned for run in runs):
            more += [SweepRun(_with_seed(runs[0].config, seed), runs[0].trial or 0, runs[0].setting) for seed in seeds]
    return _extend(store, found, more, wider, created_by)


def extend(store: Store, found: Sweep, field: str, values: Sequence[Any], *, created_by: str) -> tuple[str, ...]:
    """More values on an axis of a grid: only new settings are queued. Raises ConfigError, PreflightError."""
    spec = sweep_spec.build(found.spec)
    if spec.sampler != "grid":
        raise PreflightError(
            f"Only the axes of a grid can be extended; this sweep is {spec.sampler}: add trials to it."
        )
    axes = [axis.model_dump() for axis in spec.axes]
    matching = [axis for axis in axes if axis["field"] in (field, sweep_spec.Axis(field=field, values=(0,)).field)]
    if not matching:
        raise PreflightError(f"{field} is no axis of this sweep. It has {', '.join(a.field for a in spec.axes)}.")
    matching[0]["values"] = [*matching[0]["values"], *values]
    wider = sweep_spec.build({**found.spec, "axes": axes})
    known = [dict(runs[0].setting) for runs in trials(store.sweep_runs(found.id)).values()]
    planned = plan(wider, store.workspace)
    new_problems = [p for p in planned.problems if any(setting not in known for setting in p.settings)]
    if new_problems:
        raise PreflightError(describe(new_problems))
    fresh = [run for run in planned.runs if dict(run.setting) not in known]
    numbers: dict[str, int] = {}
    first = 1 + max((run.trial or 0 for run in store.sweep_runs(found.id)), default=-1)
    for run in fresh:
        numbers.setdefault(sweep_spec.label(dict(run.setting)), first + len(numbers))
    fresh = [run._replace(trial=numbers[sweep_spec.label(dict(run.setting))]) for run in fresh]
    return _extend(store, found, fresh, wider, created_by)


def add_trials(store: Store, found: Sweep, count: int, *, created_by: str) -> tuple[str, ...]:
    """Draw more settings. Raises ConfigError; PreflightError for a grid, which has no more."""
    spec = sweep_spec.build(found.spec)
    if spec.sampler == "grid":
        raise PreflightError("A grid has all its combinations: extend one of its axes.")
    wider = sweep_spec.build({**found.spec, "trials": (spec.trials or 0) + count})
    planned = plan(wider, store.workspace)
    if planned.problems:
        raise PreflightError(describe(planned.problems))
    fresh = [run for run in planned.runs if run.trial >= (spec.trials or 0)]
    return _extend(store, found, fresh, wider, created_by)


def rerun(
    store: Store,
    found: Sweep,
    runs: Sequence[Run],
    *,
    targets: Sequence[str] | None = None,
    created_by: str,
    form_token: str | None = None,
) -> tuple[str, ...]:
    """Train runs of a sweep again, as new runs of the same trials; targets: entries that take the place of theirs.

    form_token: see launch.start. Raises TargetError, PreflightError if a corrected run could only fail too: nothing is
    queued then.
    """
    again = []
    for run in runs:
        config = run.config
        setting = dict(run.setting)
        if targets is not None:
            values = config.model_dump(mode="json")
            values["lora"] |= {"targets": list(targets), "target_set": "", "rank_pattern": {}}
            config = orders.prepare(values).config
            setting["lora.targets"] = list(targets)
            config = config.model_copy(update={"name": sweep_spec.run_name(setting)})
        errors = orders.preflight(config, store.workspace).errors
        if errors:
            raise PreflightError(f"{config.title}: {' '.join(check.detail for check in errors)}")
        again.append(SweepRun(config, run.trial or 0, setting))
    return _extend(store, found, again, None, created_by, form_token)


# The supervisor's verb


def step(store: Store, found: Sweep, slots: int) -> bool:
    """See to one open sweep: report, prune, tell, draw, end it. True while it will need another step by itself."""
    if found.status is SweepStatus.PAUSED:
        return False
    spec = sweep_spec.build(found.spec)
    if spec.learns and not _Learner(store, found, spec).step(slots):
        return True
    if store.open_run_count(found.id):
        return True
    store.set_sweep_status(found.id, SweepStatus.FINISHED, leaving=[SweepStatus.RUNNING])
    return False


class _Learner:
    """One step of a sweep that learns. Everything is read from the study and from the runs; nothing is kept."""

    def __init__(self, store: Store, found: Sweep, spec: SweepSpec):
        self._store, self._sweep, self._spec = store, found, spec
        self._trials = trials(store.sweep_runs(found.id))
        self._study = _study(store.workspace, found, spec)

    def step(self, slots: int) -> bool:
        """True once everything is drawn and told."""
        from optuna.trial import Trial, TrialState

        drawn = self._study.get_trials(deepcopy=False)
        still_open = 0
        for frozen in drawn:
            if frozen.state is not TrialState.RUNNING:
                continue
            trial = Trial(self._study, frozen._trial_id)
            if frozen.number not in self._trials:  # drawn, and the supervisor was killed before it queued the runs
                self._queue(trial)
                still_open += 1
            elif not self._settle(trial, self._trials[frozen.number]):
                still_open += 1
        count = len(drawn)
        while count < (self._spec.trials or 0) and still_open < max(1, slots):
            if self._spoiled():
                return True
            # Seeded by its number: a supervisor that starts anew must not draw the same settings again.
            self._study.sampler = _sampler(self._spec, count)
            still_open += self._queue(self._study.ask())
            count += 1
        return count >= (self._spec.trials or 0) and still_open == 0

    def _queue(self, trial: optuna.trial.Trial) -> bool:
        """Queue the runs of a drawn setting; False, and the trial has failed, if it could only fail."""
        from optuna.trial import TrialState

        setting = {axis.field: _suggest(trial, axis) for axis in self._spec.axes}
        try:
            config = orders.prepare(sweep_spec.draft(self._spec.base, setting, self._spec.sets)).config
            errors = orders.preflight(config, self._store.workspace).errors
            if errors:
                raise PreflightError(" ".join(check.detail for check in errors))
        except UserError as error:
            trial.set_user_attr("invalid", str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            return False
        runs = _replicates(self._spec, trial.number, setting, config)
        # Whether a setting is given up is seen on its first seed: the others wait for that.
        self._store.extend_sweep(self._sweep.id, runs[:1] if self._spec.sampler == "asha" else runs, created_by="sweep")
        return True

    def _settle(self, trial: optuna.trial.Trial, runs: Sequence[Run]) -> bool:
        """Report and tell what a trial's runs have come to; True if it is over."""
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
            more = [SweepRun(_with_seed(first.config, seed), first.trial or 0, first.setting) for seed in missing]
            self._store.extend_sweep(self._sweep.id, more, created_by="sweep")
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
        curve = self._store.curve(run.id, METRIC)
        points = [(at, value) for at, value in zip(curve.steps, curve.mean, strict=True) if value is not None]
        told = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for epoch, (at, value) in enumerate(points, start=1):
            if epoch in told:
                continue
            trial.report(value, epoch)
            if epoch < run.config.training.max_epochs and trial.should_prune():
                reason = (
                    f"Pruned after epoch {epoch} (step {at}): {METRIC} {value:.1%} was not among the better third of "
                    "the trials that came this far."
                )
                self._store.prune(run.id, at, reason)
                return

    def _best(self, run: Run) -> float | None:
        summary = self._store.summaries([run.id])[run.id].get(METRIC)
        return summary.best if summary else None

    def _spoiled(self) -> bool:
        """Nothing but invalid settings lately: the sweep fails, saying why, instead of drawing for ever."""
        last = self._study.get_trials(deepcopy=False)[-INVALID_IN_A_ROW:]
        why = [trial.user_attrs.get("invalid") for trial in last]
        if len(why) < INVALID_IN_A_ROW or not all(why):
            return False
        reason = f"The last {INVALID_IN_A_ROW} settings that were drawn could only fail. The last one: {why[-1]}"
        self._store.set_sweep_status(self._sweep.id, SweepStatus.FAILED, leaving=[SweepStatus.RUNNING], reason=reason)
        return True


# Inside


def study_file(workspace: Workspace, sweep_id: str) -> Path:
    """Optuna's own database of one sweep."""
    return workspace.runs / ".sweeps" / f"{sweep_id}.db"


def _study(workspace: Workspace, found: Sweep, spec: SweepSpec) -> optuna.Study:
    """RDBStorage, not the journal file: one torn line breaks that for good. One process writes it: the supervisor."""
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
    """Kept open: making sure of its tables costs 0.1 s."""
    import optuna

    return optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 30}})


def _sampler(spec: SweepSpec, drawn: int) -> optuna.samplers.BaseSampler:
    import optuna

    seed = (spec.sampler_seed * 1_000_003 + drawn) % 2**31
    if spec.sampler != "tpe":
        return optuna.samplers.RandomSampler(seed=seed)
    startup = min(10, max(3, (spec.trials or 0) // 3))
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


def _suggest(trial: optuna.trial.Trial, axis: Axis) -> Any:
    if not axis.is_range:
        names = [sweep_spec.show(value) for value in axis.values]
        return axis.values[names.index(trial.suggest_categorical(axis.field, names))]
    low, high = axis.ends
    if axis.is_whole:
        return trial.suggest_int(axis.field, low, high, log=axis.log)
    return trial.suggest_float(axis.field, low, high, log=axis.log)


def _drawn(spec: SweepSpec) -> list[Setting]:
    """The settings of a random sweep: the same for the same sampler_seed, and the first n of a longer one."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=spec.sampler_seed))
    wanted = spec.trials or 0
    if not any(axis.is_range for axis in spec.axes):
        there = math.prod(len(axis.values) for axis in spec.axes)
        if wanted > there:
            raise PreflightError(
                f"There are only {there} combinations, and {wanted} trials were asked for: use a grid."
            )
    found: list[Setting] = []
    while len(found) < wanted:
        trial = study.ask()
        setting = {axis.field: _suggest(trial, axis) for axis in spec.axes}
        if setting not in found:
            found.append(setting)
    return found


def _replicates(spec: SweepSpec, number: int, setting: Setting, config: RunConfig) -> list[SweepRun]:
    named = config.model_copy(update={"name": sweep_spec.run_name(setting)})
    return [SweepRun(_with_seed(named, seed), number, setting) for seed in spec.seeds]


def _with_seed(config: RunConfig, seed: int) -> RunConfig:
    return config.model_copy(update={"seed": seed})


def _extend(
    store: Store,
    found: Sweep,
    runs: Sequence[SweepRun],
    spec: SweepSpec | None,
    created_by: str,
    form_token: str | None = None,
) -> tuple[str, ...]:
    dump = None if spec is None else spec.model_dump(mode="json")
    ids = store.extend_sweep(found.id, runs, created_by=created_by, spec=dump, form_token=form_token)
    supervisor.ensure(store.workspace)
    return ids


def _looked_at(config: RunConfig, workspace: Workspace, checked: dict[str, orders.Preflight]) -> orders.Preflight:
    """launch.preflight, once for runs that differ in nothing it looks at."""
    key = config.model_dump_json(include={"model", "lora", "data", "device", "wandb"})
    if key not in checked:
        checked[key] = orders.preflight(config, workspace)
    return checked[key]


def _predicted(
    runs: Sequence[SweepRun], earlier: Collection[Run], checked: dict[str, orders.Preflight], workspace: Workspace
) -> tuple[float | None, tuple[RunConfig, ...]]:
    """Seconds of all runs: of a step, and around them, as in earlier runs of the same kind, or else as probed."""
    paces: dict[str, list[tuple[float, float]]] = {
        kind: [(pace.step_s, pace.start_s)] for kind, pace in timing.known(workspace).items()
    }
    trained: dict[str, list[tuple[float, float]]] = {}
    for run in earlier:
        train_s, epochs = run.facts.get("train_s"), run.facts.get("epochs")
        clips = run.facts.get("data", {}).get("clips", {}).get("train")
        if train_s and epochs and clips and run.seconds:
            steps = run.config.training.steps_per_epoch(clips) * epochs
            overhead = max(0.0, run.seconds - train_s)
            trained.setdefault(timing.key(run.config), []).append((train_s / steps, overhead))
    paces |= trained
    total, untimed = 0.0, {}
    for run in runs:
        known = paces.get(timing.key(run.config))
        if not known:
            untimed.setdefault(timing.key(run.config), run.config)
            continue
        key = run.config.model_dump_json(include={"model", "lora", "data", "device", "wandb"})
        training = run.config.training
        steps = training.steps_per_epoch(checked[key].clips["train"]) * training.max_epochs
        total += steps * median(pace for pace, _ in known) + median(overhead for _, overhead in known)
    return (None if untimed or not runs else total), tuple(untimed.values())


def _folder_bytes(config: RunConfig) -> int:
    """Three checkpoints of trained weights with AdamW's two moments, the adapter, and a megabyte of the rest."""
    outline = targets.load_outline(config.model.variant)
    counts = targets.count(
        outline,
        [target.path for target in config.lora.targets],
        r=config.lora.r,
        head=config.lora.head,
        num_classes=40,
        method=config.lora.method,
        ranks=config.lora.ranks,
    )
    return counts.trainable * 4 * (3 * 3 + 1) + 1_000_000


@contextlib.contextmanager
def _store_if_any(workspace: Workspace) -> Iterator[Store | None]:
    if not workspace.db.is_file():
        yield None
        return
    with Store.open(workspace) as store:
        yield store
