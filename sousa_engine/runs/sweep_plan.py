"""The plan of a sweep, before it starts: its runs, their time and disk, and combinations that cannot work."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from sousa_engine import backbones, targets
from sousa_engine.analysis.layers import ablations
from sousa_engine.core import sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, PreflightError, UserError
from sousa_engine.core.records import Run, RunStatus, SweepRun
from sousa_engine.core.sweep_spec import MOST_LETTERS, Axis, Setting, SweepSpec
from sousa_engine.runs import preflight, prepare, timing
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    import optuna


METRIC = "valid/accuracy"  # the test split is for the comparison at the end, never for sampling or pruning


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why these settings cannot work: found by the checks of a single run."""

    message: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a sweep. runs: those known by now; a sweep that learns samples the rest as it goes.

    seconds: of all runs in sequence, from earlier runs and timings; None while there are `untimed` ones: one config of
    each kind that was neither trained nor timed here. disk_bytes: the approximate size of the run folders.
    """

    spec: SweepSpec
    runs: tuple[SweepRun, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    run_count: int
    seconds: float | None
    untimed: tuple[RunConfig, ...]
    disk_bytes: int


def plan(spec: SweepSpec, workspace: Workspace) -> Plan:
    """Check every setting as a single run. Raises PreflightError if there are fewer settings than requested."""
    settings = sweep_spec.combinations(spec.axes) if spec.sampler != "random" else _sampled(spec)
    if spec.learns:
        settings = settings[: sweep_spec.MOST_RUNS]
    checked: dict[str, preflight.Preflight] = {}
    runs: list[SweepRun] = []
    causes: dict[str, list[Setting]] = {}
    notes: dict[str, None] = {}
    for number, setting in enumerate(settings):
        try:
            prepared = prepare.prepare(sweep_spec.draft(spec.base, setting, spec.sets))
            found = _checked(prepared.config, workspace, checked)
        except UserError as error:
            causes.setdefault(str(error), []).append(setting)
            continue
        defaults = preflight.whose_defaults(prepared.config, besides=[axis.field for axis in spec.axes])
        notes |= dict.fromkeys(note for note in (*prepared.notes, defaults) if note)
        if found.errors:
            causes.setdefault(" ".join(check.detail for check in found.errors), []).append(setting)
        else:
            runs += replicates(spec, number, setting, prepared.config)
    problems = tuple(Problem(message=cause, settings=tuple(where)) for cause, where in causes.items())
    with _store_if_any(workspace) as store:
        earlier = store.runs.all(RunStatus.FINISHED, limit=500) if store else ()
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

    entries: names, as targets.resolve_sets reads them. Raises UnknownNameError, TargetError; ConfigError if the set has
    no parts.
    """
    outline = targets.load_outline(backbones.variant(variant).name)
    sets = ablations(outline, targets.resolve_sets(outline, list(entries)).paths)
    if len(sets) < 2:
        raise ConfigError(
            f"{sweep_spec.show(list(entries))} has no parts in {variant} to leave out: an ablation needs modules of "
            "two roles or two layers."
        )
    return {name: tuple(targets.short_names(outline, paths)) for name, paths in sets.items()}


def ablation_of(config: RunConfig) -> SweepSpec:
    """The sweep that ablates a run's targets: same settings, three seeds, without separate ranks.

    Raises ConfigError, TargetError as `ablation` does.
    """
    base = prepare.to_draft(config)
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


def describe(problems: Sequence[Problem]) -> str:
    """One line per cause, with the number of settings that it affects and the first of them."""
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


def suggest(trial: optuna.trial.Trial, axis: Axis) -> Any:
    """A value of this axis for a trial, sampled by Optuna."""
    if not axis.is_range:
        names = [sweep_spec.show(value) for value in axis.values]
        return axis.values[names.index(trial.suggest_categorical(axis.field, names))]
    low, high = axis.ends
    if axis.is_whole:
        return trial.suggest_int(axis.field, low, high, log=axis.log)
    return trial.suggest_float(axis.field, low, high, log=axis.log)


def _sampled(spec: SweepSpec) -> list[Setting]:
    """The settings of a random sweep: the same for the same sampler_seed; a longer sweep starts with them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=spec.sampler_seed))
    wanted = spec.trials or 0
    if not any(axis.is_range for axis in spec.axes):
        there = math.prod(len(axis.values) for axis in spec.axes)
        if wanted > there:
            raise PreflightError(
                f"{wanted} trials were requested, but there {'is' if there == 1 else 'are'} only {there} "
                f"combination{'' if there == 1 else 's'}: use a grid."
            )
    found: list[Setting] = []
    while len(found) < wanted:
        trial = study.ask()
        setting = {axis.field: suggest(trial, axis) for axis in spec.axes}
        if setting not in found:
            found.append(setting)
    return found


def replicates(spec: SweepSpec, number: int, setting: Setting, config: RunConfig) -> list[SweepRun]:
    """The runs of trial `number`: its setting with each seed of the sweep."""
    named = config.model_copy(update={"name": sweep_spec.run_name(setting)})
    return [SweepRun(with_seed(named, seed), number, setting) for seed in spec.seeds]


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same config with another seed."""
    return config.model_copy(update={"seed": seed})


def _checked(config: RunConfig, workspace: Workspace, checked: dict[str, preflight.Preflight]) -> preflight.Preflight:
    """preflight.preflight, once for all runs that are equal in the fields that it checks."""
    key = config.model_dump_json(include={"model", "lora", "data", "device", "wandb"})
    if key not in checked:
        checked[key] = preflight.preflight(config, workspace)
    return checked[key]


def _predicted(
    runs: Sequence[SweepRun], earlier: Collection[Run], checked: dict[str, preflight.Preflight], workspace: Workspace
) -> tuple[float | None, tuple[RunConfig, ...]]:
    """Seconds of all runs, and the untimed ones: from the steps and the overhead of earlier runs, else from timings."""
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
    """Three checkpoints of the trained weights with AdamW's two moments, the adapter, and a megabyte for the rest."""
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
