"""Queue, resume and clone runs, for the pages and the command line. Never imports torch.

prepare (resolve names, check values) -> preflight (can it work, what will it do) -> start (queue it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sousa_engine.core import identity
from sousa_engine.core.config import DataConfig, RunConfig
from sousa_engine.core.errors import (
    PreflightError,
    RunError,
    UnknownNameError,
    UserError,
)
from sousa_engine.core.records import Origin, Run, RunFilter, RunRow, RunStatus, SweepStatus
from sousa_engine.data.dataset import DataSet
from sousa_engine.runs import ensure
from sousa_engine.runs.preflight import preflight
from sousa_engine.runs.prepare import changed, prepare
from sousa_engine.store import Store, not_resumable
from sousa_engine.training import resume as checkpoints
from sousa_engine.workspace import Workspace

FAILED = (RunStatus.FAILED, RunStatus.LOST)


def start(workspace: Workspace, run_config: RunConfig, *, created_by: str, form_token: str | None = None) -> Run:
    """Queue a run and see that a supervisor runs. Raises PreflightError if a check before the run fails.

    form_token: identifies a submitted form; submitted again, it returns the run of the first time.
    """
    found = preflight(run_config, workspace)
    if found.errors:
        raise PreflightError(" ".join(check.detail for check in found.errors))
    with Store.open(workspace) as store:
        run = store.runs.enqueue(run_config, created_by=created_by, form_token=form_token)
    ensure.ensure(workspace)
    return run


def trained_before(store: Store, config: RunConfig) -> Run | None:
    """The newest of the last finished runs that read the same settings with the same seed, if there is one."""
    wanted = identity.key(config)
    for run in store.runs.all(RunStatus.FINISHED, limit=500):
        if run.config.seed == config.seed and identity.key(run.config) == wanted:
            return run
    return None


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """Whether a run can be resumed. step, epoch: of the checkpoint it would continue from. why_not: "" if it can.

    note: a sentence on what to expect, or "". data: the run's data set, if it was opened for a thorough look.
    """

    step: int = 0
    epoch: int = 0
    why_not: str = ""
    note: str = ""
    data: DataSet | None = None


def resumable(run: Run, store: Store, *, thorough: bool = False) -> Resumable:
    """A quick look at the run's folder; thorough: check every byte of the checkpoint, and the data set.

    The trainer checks what else may have changed since then (weights, versions).
    """
    if why_not := not_resumable(run):
        return Resumable(why_not=why_not)
    try:
        found = checkpoints.find(store.workspace.run_dir(run.id), thorough=thorough)
        data = DataSet.open(run.config.data, store.workspace) if thorough else None
        notes = []
        if data and not data.manifest.contents:
            notes.append("Its data set was not scanned as it is now: the run scans it first, and compares it then.")
        elif data:
            found = checkpoints.trusted(found, data.manifest)
            if changed := checkpoints.data_change(found.facts, data.manifest):
                raise RunError(changed)
    except UserError as error:
        return Resumable(why_not=f"This run cannot be resumed. {error}")
    except (RunError, OSError) as error:
        return Resumable(why_not=f"This run cannot be resumed. {error} Launch a new run instead.")
    if found.damaged:
        notes.append(f"The newest checkpoint is damaged; the run continues from the one before. {found.damaged[0]}")
    divergence = store.metrics.first_divergence(run.id)
    if run.status is RunStatus.FAILED and divergence:
        notes.append(f"{divergence[0]} became NaN or infinite at step {divergence[1]} and will probably do so again.")
    sweep = store.sweeps.get(run.sweep_id) if run.sweep_id else None
    if sweep and sweep.status is SweepStatus.PAUSED:
        notes.append("Its sweep is paused; the run waits until the sweep is resumed.")
    return Resumable(step=found.step, epoch=found.epoch, note=" ".join(notes), data=data)


def resume(workspace: Workspace, run_id: str) -> tuple[Run, Resumable]:
    """Queue a stopped, failed or lost run again, as the same run, to continue from its last intact checkpoint.

    Raises PreflightError saying why that is impossible; UserError if it is active or finished; UnknownNameError.
    """
    with Store.open(workspace) as store:
        run = store.runs.get(run_id)
        if run is None:
            raise UnknownNameError(f"No run has the id {run_id!r}.")
        found = resumable(run, store, thorough=True)
        if found.why_not:
            raise PreflightError(found.why_not)
        errors = preflight(run.config, workspace, found.data).errors
        if errors:
            raise PreflightError(" ".join(check.detail for check in errors))
        run = store.runs.resume(run_id, f"Continues from step {found.step}, epoch {found.epoch}.")
    ensure.ensure(workspace)
    return run, found


def clone(
    workspace: Workspace,
    runs: Sequence[Run],
    changes: Sequence[str] = (),
    *,
    created_by: str,
    form_token: str | None = None,
    retry: bool = False,
) -> tuple[Run, ...]:
    """Queue new runs with the settings of these, in the same order; all of them, or none.

    changes: words as grammar.parse reads them, applied to each. retry: the new runs replace runs that failed, even if
    changed; unchanged ones always do. form_token as in `start`. Raises ConfigError, UnknownNameError, TargetError,
    DataError; PreflightError naming the run that cannot work.
    """
    configs: list[RunConfig] = []
    opened: dict[DataConfig, DataSet] = {}
    for run in runs:
        found = prepare(changed(run.config, changes) if changes else run.config.model_dump(mode="json")).config
        if found.data not in opened:
            opened[found.data] = DataSet.open(found.data, workspace)
        if errors := preflight(found, workspace, opened[found.data]).errors:
            raise PreflightError(f"{run.id} ({found.title}): {' '.join(check.detail for check in errors)}")
        configs.append(found)
    origins = [Origin(run.id, run.status in FAILED and (retry or not changes)) for run in runs]
    with Store.open(workspace) as store:
        made = store.runs.enqueue_all(configs, created_by=created_by, form_token=form_token, origins=origins)
    ensure.ensure(workspace)
    return made


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failed runs to try again, oldest first. passed_over: a sentence for each one that is skipped."""

    runs: tuple[Run, ...]
    passed_over: tuple[str, ...]


def failures(store: Store) -> Failures:
    """All runs that failed or were lost, except archived ones and those of sweeps.

    A run is skipped if its retry is queued, active or finished, or if its retry failed too: then the retry is listed.
    """
    rows = store.runs.listing(RunFilter(statuses=FAILED), descending=False).rows
    failed = dict.fromkeys(row.id for row in rows if row.sweep_id is None)
    origins = store.runs.retries()
    retries: dict[str, list[RunRow]] = {}
    for retry in store.runs.rows(origins):
        first = origins[retry.id]
        while first is not None:  # a retry of a retry also counts for the first run
            retries.setdefault(first, []).append(retry)
            first = origins.get(first)
    runs, passed_over = [], []
    for run_id in failed:
        found = retries.get(run_id, [])
        done = [one for one in found if not one.status.is_over or one.status is RunStatus.FINISHED]
        again = [one for one in found if one.id in failed]
        if done:
            passed_over.append(f"{run_id} is skipped: its clone {done[-1].id} is {done[-1].status.value}.")
        elif again:
            passed_over.append(f"{run_id} is skipped in favour of its clone {again[-1].id}, which failed too.")
        else:
            runs.append(store.runs.find(run_id))
    return Failures(runs=tuple(runs), passed_over=tuple(passed_over))
