"""From a draft to a queued run: one door for the page and the command line. Never imports torch.

prepare (names -> modules, values checked) -> preflight (could it work, and what will it do) -> start (queue it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sousa_engine.core.config import DataConfig, RunConfig
from sousa_engine.core.errors import (
    PreflightError,
    RunError,
    UnknownNameError,
    UserError,
)
from sousa_engine.core.records import Origin, Run, RunFilter, RunRow, RunStatus, SweepStatus
from sousa_engine.data import manifest as manifests
from sousa_engine.data.dataset import DataSet
from sousa_engine.runs import ensure
from sousa_engine.runs.preflight import preflight
from sousa_engine.runs.prepare import changed, prepare
from sousa_engine.store import Store, not_resumable
from sousa_engine.training import resume as checkpoints
from sousa_engine.workspace import Workspace

FAILED = (RunStatus.FAILED, RunStatus.LOST)


def start(workspace: Workspace, run_config: RunConfig, *, created_by: str, form_token: str | None = None) -> Run:
    """Queue a run and see that a supervisor is there to take it. Raises PreflightError naming what is missing.

    form_token: names a form that was sent; sent again, it is answered with the run that it made the first time.
    """
    found = preflight(run_config, workspace)
    if found.errors:
        raise PreflightError(" ".join(check.detail for check in found.errors))
    with Store.open(workspace) as store:
        run = store.runs.enqueue(run_config, created_by=created_by, form_token=form_token)
    ensure.ensure(workspace)
    return run


@dataclass(frozen=True, kw_only=True)
class Resumable:
    """Whether a run can go on. step, epoch: of the checkpoint it would go on from. why_not: "" if it can.

    note: what to expect, "" for nothing: a sentence. data: the run's data set, if it was opened for a thorough look.
    """

    step: int = 0
    epoch: int = 0
    why_not: str = ""
    note: str = ""
    data: DataSet | None = None


def resumable(run: Run, store: Store, *, thorough: bool = False) -> Resumable:
    """A quick look at what stands in the run's folder; thorough: every byte of the checkpoint is checked, and the data.

    What else changed since then (weights, versions) is for the trainer to see.
    """
    if why_not := not_resumable(run):
        return Resumable(why_not=why_not)
    try:
        found = checkpoints.find(store.workspace.run_dir(run.id), thorough=thorough)
        data = DataSet.open(run.config.data, store.workspace) if thorough else None
        if data and manifests.fingerprint(data.manifest) != found.facts.get("data"):
            raise RunError("Its data set is another one since then: clips, labels or splits changed.")
    except UserError as error:
        return Resumable(why_not=f"It cannot be resumed. {error}")
    except (RunError, OSError) as error:
        return Resumable(why_not=f"It cannot be resumed. {error} Launch it again instead.")
    notes = []
    if found.damaged:
        notes.append(f"A newer checkpoint is damaged, so it goes on from the one before. {found.damaged[0]}")
    divergence = store.metrics.first_divergence(run.id)
    if run.status is RunStatus.FAILED and divergence:
        notes.append(f"{divergence[0]} was no number at step {divergence[1]}: expect the same again.")
    sweep = store.sweeps.get(run.sweep_id) if run.sweep_id else None
    if sweep and sweep.status is SweepStatus.PAUSED:
        notes.append("Its sweep is paused: it waits until the sweep goes on.")
    return Resumable(step=found.step, epoch=found.epoch, note=" ".join(notes), data=data)


def resume(workspace: Workspace, run_id: str) -> tuple[Run, Resumable]:
    """Queue a stopped, failed or lost run again, as the same run, to go on from its last good checkpoint.

    Raises PreflightError saying why it cannot be; UserError if it is not over or finished; UnknownNameError.
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
        run = store.runs.resume(run_id, f"It is to go on from step {found.step}, epoch {found.epoch}.")
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

    changes: words as grammar.parse reads them, for each of them. retry: they make up for runs that failed, changed or
    not; unchanged ones always do. form_token as in `start`. Raises ConfigError, UnknownNameError, TargetError,
    DataError; PreflightError naming the run that could only fail.
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
    """Runs that failed and are to be tried again, oldest first. passed_over: a sentence for each that is not."""

    runs: tuple[Run, ...]
    passed_over: tuple[str, ...]


def failures(store: Store) -> Failures:
    """All runs that failed or were lost; not archived ones, nor those of sweeps.

    One whose retry waits, trains or is finished is passed over, and one whose retry failed too: that one is among them.
    """
    rows = store.runs.listing(RunFilter(statuses=FAILED), descending=False).rows
    failed = dict.fromkeys(row.id for row in rows if row.sweep_id is None)
    origins = store.runs.retries()
    retries: dict[str, list[RunRow]] = {}
    for retry in store.runs.rows(origins):
        first = origins[retry.id]
        while first is not None:  # a retry of a retry stands for the first run too
            retries.setdefault(first, []).append(retry)
            first = origins.get(first)
    runs, passed_over = [], []
    for run_id in failed:
        found = retries.get(run_id, [])
        done = [one for one in found if not one.status.is_over or one.status is RunStatus.FINISHED]
        again = [one for one in found if one.id in failed]
        if done:
            passed_over.append(f"{run_id} is passed over: its clone {done[-1].id} is {done[-1].status.value}.")
        elif again:
            passed_over.append(f"{run_id} is passed over for its clone {again[-1].id}, which failed too.")
        else:
            runs.append(store.runs.find(run_id))
    return Failures(runs=tuple(runs), passed_over=tuple(passed_over))
