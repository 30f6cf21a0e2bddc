"""Start and steer sweeps. The definition is in runs.db; what Optuna sampled is in a separate SQLite file.

Grid and random sweeps queue all their runs at once. For a sweep that learns (tpe, asha), the supervisor calls
`sweep_learner.step` each second: it may be killed between any two lines, and the next one continues from the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sousa_engine.analysis.sweeps import trials
from sousa_engine.core import sweep_spec
from sousa_engine.core.errors import PreflightError
from sousa_engine.core.records import Run, Sweep, SweepRun, SweepStatus
from sousa_engine.core.sweep_spec import SweepSpec
from sousa_engine.runs import ensure, preflight, prepare
from sousa_engine.runs.sweep_plan import describe, plan, with_seed
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

_OPEN = (SweepStatus.RUNNING, SweepStatus.PAUSED)


def start(
    workspace: Workspace,
    spec: SweepSpec,
    *,
    created_by: str,
    leave_out_invalid: bool = False,
    form_token: str | None = None,
) -> Sweep:
    """Queue a sweep and see that a supervisor runs. Raises PreflightError naming invalid combinations.

    leave_out_invalid: start without the settings that the plan names as problems. form_token: see orders.start.
    """
    found = plan(spec, workspace)
    if found.problems and not (leave_out_invalid and found.runs):
        raise PreflightError(describe(found.problems))
    with Store.open(workspace) as store:
        made = store.sweeps.add(
            spec.title, spec.model_dump(mode="json"), found.runs, created_by=created_by, form_token=form_token
        )
    ensure.ensure(workspace)
    return made


def resume(store: Store, sweep_id: str) -> bool:
    """Release the held runs. False if the sweep was not paused."""
    changed = store.sweeps.set_status(sweep_id, SweepStatus.RUNNING, leaving=[SweepStatus.PAUSED])
    ensure.ensure(store.workspace)
    return changed


def stop(store: Store, sweep_id: str) -> bool:
    """Remove queued runs from the queue; active ones save and stop. False if the sweep was done already."""
    changed = store.sweeps.set_status(sweep_id, SweepStatus.STOPPED, leaving=_OPEN, reason="Stopped by the user.")
    for run in store.sweeps.runs(sweep_id) if changed else ():
        if not run.status.is_over:
            store.runs.request_stop(run.id)
    ensure.ensure(store.workspace)
    return changed


def add_seeds(store: Store, found: Sweep, seeds: Sequence[int], *, created_by: str) -> tuple[str, ...]:
    """Train every setting that was not pruned with more seeds. Returns the new runs' ids. Raises ConfigError."""
    spec = sweep_spec.build(found.spec)
    wider = sweep_spec.build({**found.spec, "seeds": [*spec.seeds, *seeds]})  # refuses a seed given twice
    more = []
    for runs in trials(store.sweeps.runs(found.id)).values():
        if not any(run.is_pruned for run in runs):
            more += [SweepRun(with_seed(runs[0].config, seed), runs[0].trial or 0, runs[0].setting) for seed in seeds]
    return _extend(store, found, more, wider, created_by)


def extend(store: Store, found: Sweep, field: str, values: Sequence[Any], *, created_by: str) -> tuple[str, ...]:
    """Add values to an axis of a grid: only new settings are queued. Raises ConfigError, PreflightError."""
    spec = sweep_spec.build(found.spec)
    if spec.sampler != "grid":
        raise PreflightError(
            f"Only the axes of a grid can be extended; this sweep is {spec.sampler}: add trials to it."
        )
    axes = [axis.model_dump() for axis in spec.axes]
    matching = [axis for axis in axes if axis["field"] in (field, sweep_spec.Axis(field=field, values=(0,)).field)]
    if not matching:
        names = ", ".join(axis.field for axis in spec.axes)
        raise PreflightError(f"{field} is not an axis of this sweep. Its axes: {names}.")
    matching[0]["values"] = [*matching[0]["values"], *values]
    wider = sweep_spec.build({**found.spec, "axes": axes})
    known = [dict(runs[0].setting) for runs in trials(store.sweeps.runs(found.id)).values()]
    planned = plan(wider, store.workspace)
    new_problems = [p for p in planned.problems if any(setting not in known for setting in p.settings)]
    if new_problems:
        raise PreflightError(describe(new_problems))
    fresh = [run for run in planned.runs if dict(run.setting) not in known]
    numbers: dict[str, int] = {}
    first = 1 + max((run.trial or 0 for run in store.sweeps.runs(found.id)), default=-1)
    for run in fresh:
        numbers.setdefault(sweep_spec.label(dict(run.setting)), first + len(numbers))
    fresh = [run._replace(trial=numbers[sweep_spec.label(dict(run.setting))]) for run in fresh]
    return _extend(store, found, fresh, wider, created_by)


def add_trials(store: Store, found: Sweep, count: int, *, created_by: str) -> tuple[str, ...]:
    """Sample more settings. Raises ConfigError; PreflightError for a grid, which has no others."""
    spec = sweep_spec.build(found.spec)
    if spec.sampler == "grid":
        raise PreflightError("A grid already has all its combinations: extend one of its axes.")
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
    """Train runs of a sweep again, as new runs of the same trials. targets: entries that replace theirs.

    form_token: see orders.start. Raises TargetError, or PreflightError if a run is still invalid: nothing is queued
    then.
    """
    again = []
    for run in runs:
        config = run.config
        setting = dict(run.setting)
        if targets is not None:
            values = config.model_dump(mode="json")
            values["lora"] |= {"targets": list(targets), "target_set": "", "rank_pattern": {}}
            config = prepare.prepare(values).config
            setting["lora.targets"] = list(targets)
            config = config.model_copy(update={"name": sweep_spec.run_name(setting)})
        errors = preflight.preflight(config, store.workspace).errors
        if errors:
            raise PreflightError(f"{config.title}: {' '.join(check.detail for check in errors)}")
        again.append(SweepRun(config, run.trial or 0, setting))
    return _extend(store, found, again, None, created_by, form_token)


def _extend(
    store: Store,
    found: Sweep,
    runs: Sequence[SweepRun],
    spec: SweepSpec | None,
    created_by: str,
    form_token: str | None = None,
) -> tuple[str, ...]:
    dump = None if spec is None else spec.model_dump(mode="json")
    ids = store.sweeps.extend(found.id, runs, created_by=created_by, spec=dump, form_token=form_token)
    ensure.ensure(store.workspace)
    return ids
