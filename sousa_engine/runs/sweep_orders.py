"""Start and steer sweeps. The definition is in runs.db; what Optuna sampled is in a separate SQLite file.

Grid and random sweeps queue all their runs at once. For a sweep that learns (tpe, asha), the supervisor calls
`sweep_learner.step` each second: it may be killed between any two lines, and the next one continues from the files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sousa_engine.analysis.sweeps import trials
from sousa_engine.core import config as configs
from sousa_engine.core import identity, sweep_spec
from sousa_engine.core.errors import PreflightError
from sousa_engine.core.records import Run, Sweep, SweepRun, SweepStatus
from sousa_engine.core.sweep_spec import SweepSpec
from sousa_engine.runs import ensure, preflight, prepare
from sousa_engine.runs.sweep_plan import Before, describe, plan, with_seed
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

MOST_NAMED = 8  # settings listed in a sentence
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


@dataclass(frozen=True, kw_only=True)
class Queued:
    """What an order on a sweep queued. settings: their labels. notes: a sentence on each kind that was left out."""

    ids: tuple[str, ...]
    settings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    @property
    def sentence(self) -> str:
        """`6 runs queued: ast-mini · default, beats-mini · default.`"""
        if not self.ids:
            return "No run was queued."
        count = len(self.ids)
        more = f" and {len(self.settings) - MOST_NAMED:,} others" if len(self.settings) > MOST_NAMED else ""
        named = ", ".join(self.settings[:MOST_NAMED])
        return f"{count:,} {'run' if count == 1 else 'runs'} queued: {named}{more}."


def add_seeds(store: Store, found: Sweep, seeds: Sequence[int], *, created_by: str) -> Queued:
    """Train every setting that has runs and was not pruned with more seeds. Raises ConfigError."""
    spec = sweep_spec.build(found.spec)
    wider = sweep_spec.build({**found.spec, "seeds": [*spec.seeds, *seeds]})  # refuses a seed given twice
    more: list[SweepRun] = []
    keys: set[str] = set()
    pruned = repeated = 0
    there = trials(store.sweeps.runs(found.id)).values()
    for runs in there:
        key = identity.key(runs[0].config)
        if any(run.is_pruned for run in runs):
            pruned += 1
        elif key in keys:
            repeated += 1
        else:
            more += [SweepRun(with_seed(runs[0].config, seed), runs[0].trial or 0, runs[0].setting) for seed in seeds]
        keys.add(key)
    gone = 0 if spec.learns else max(0, spec.trial_count - len(there))
    notes = [
        _left_out(pruned, "was pruned", "were pruned"),
        _left_out(repeated, "trains the same as another one", "train the same as others"),
        _left_out(gone, "has no runs (never queued, or deleted)", "have no runs (never queued, or deleted)"),
    ]
    return _extend(store, found, more, wider, created_by, notes=notes)


def extend(store: Store, found: Sweep, field: str, values: Sequence[Any], *, created_by: str) -> Queued:
    """Add values to an axis of a grid: only new settings are queued, none that was deleted.

    Raises ConfigError, PreflightError.
    """
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
    return _widen(store, found, spec, sweep_spec.build({**found.spec, "axes": axes}), created_by)


def add_trials(store: Store, found: Sweep, count: int, *, created_by: str) -> Queued:
    """Sample more settings. Raises ConfigError; PreflightError for a grid, or if there are no others."""
    spec = sweep_spec.build(found.spec)
    if spec.sampler == "grid":
        raise PreflightError("A grid already has all its combinations: extend one of its axes.")
    there = sweep_spec.setting_count(spec.axes)
    if spec.learns and there is not None and there <= (spec.trials or 0):
        raise PreflightError(f"There are no other settings: these axes have {there:,}, and the sweep samples them all.")
    wider = sweep_spec.build({**found.spec, "trials": (spec.trials or 0) + count})
    return _widen(store, found, spec, wider, created_by)


def _widen(store: Store, found: Sweep, spec: SweepSpec, wider: SweepSpec, created_by: str) -> Queued:
    """Queue what is in `wider` and was never in `spec`."""
    runs = store.sweeps.runs(found.id)
    last = max((run.trial or 0 for run in runs), default=-1)
    keys = {identity.key(run.config): dict(run.setting) for run in runs}
    before = Before(spec=spec, keys=keys, first_trial=max(1 + last, spec.trial_count))
    planned = plan(wider, store.workspace, before)
    if planned.problems:
        raise PreflightError(describe(planned.problems))
    return _extend(store, found, planned.runs, wider, created_by, notes=planned.notes)


def _left_out(count: int, one: str, several: str) -> str:
    return f"{count:,} {f'setting {one}' if count == 1 else f'settings {several}'}: left out." if count else ""


def rerun(
    store: Store,
    found: Sweep,
    runs: Sequence[Run],
    *,
    targets: Sequence[str] | None = None,
    created_by: str,
    form_token: str | None = None,
) -> Queued:
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
            config = configs.build({**dict(config), "name": sweep_spec.run_name(setting)})
        errors = preflight.preflight(config, store.workspace).errors
        if errors:
            raise PreflightError(f"{config.title}: {' '.join(check.detail for check in errors)}")
        again.append(SweepRun(config, run.trial or 0, setting))
    return _extend(store, found, again, None, created_by, form_token=form_token)


def _extend(
    store: Store,
    found: Sweep,
    runs: Sequence[SweepRun],
    spec: SweepSpec | None,
    created_by: str,
    *,
    form_token: str | None = None,
    notes: Sequence[str] = (),
) -> Queued:
    dump = None if spec is None else spec.model_dump(mode="json")
    ids = store.sweeps.extend(found.id, runs, created_by=created_by, spec=dump, form_token=form_token)
    ensure.ensure(store.workspace)
    settings = dict.fromkeys(sweep_spec.label(dict(run.setting)) for run in runs)
    return Queued(ids=ids, settings=tuple(settings), notes=tuple(filter(None, notes)))
