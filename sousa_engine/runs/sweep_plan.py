"""The plan of a sweep, before it starts: its runs, their time and disk, and combinations that cannot work."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from sousa_engine import backbones, targets
from sousa_engine.analysis.layers import ablations
from sousa_engine.core import config as configs
from sousa_engine.core import grammar, identity, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import ConfigError, PreflightError, UserError
from sousa_engine.core.methods import METHODS
from sousa_engine.core.records import Run, RunStatus, SweepRun
from sousa_engine.core.sweep_spec import MOST_LETTERS, Axis, Setting, SweepSpec
from sousa_engine.runs import preflight, prepare, timing
from sousa_engine.store import Store
from sousa_engine.workspace import Workspace

if TYPE_CHECKING:
    import optuna


MISSES = 100  # draws in a row that give nothing new end a search
METRIC = "valid/accuracy"  # the test split is for the comparison at the end, never for sampling or pruning


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why these settings cannot work: found by the checks of a single run."""

    message: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A setting that trains the same runs as `first`, so it is left out. why: a clause."""

    setting: Setting
    first: Setting
    why: str


@dataclass(frozen=True, kw_only=True)
class Before:
    """A sweep before it is extended. keys: of its runs, with their settings; first_trial: number of the next trial."""

    spec: SweepSpec
    keys: Mapping[str, Setting]
    first_trial: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a sweep. runs: those known by now; a sweep that learns samples the rest as it goes.

    seconds: of all runs in sequence, from earlier runs and timings; None while there are `untimed` ones: one config of
    each kind that was neither trained nor timed here. disk_bytes: the approximate size of the run folders.
    """

    spec: SweepSpec
    runs: tuple[SweepRun, ...]
    problems: tuple[Problem, ...]
    repeats: tuple[Repeat, ...]
    notes: tuple[str, ...]
    run_count: int
    seconds: float | None
    untimed: tuple[RunConfig, ...]
    disk_bytes: int


def plan(spec: SweepSpec, workspace: Workspace, before: Before | None = None) -> Plan:
    """Check every setting as a single run; one that trains the same as an earlier one is left out.

    before: the sweep that `spec` extends; the plan then holds only what is new, and what that sweep had once and lost
    is not new. Raises PreflightError if there are fewer settings than requested, ConfigError for the ends of a range.
    """
    _check_ranges(spec)
    checked: dict[str, preflight.Preflight] = {}
    runs: list[SweepRun] = []
    causes: dict[str, list[Setting]] = {}
    notes: dict[str, None] = {}
    settings = Distinct(spec, before)
    for number, setting, prepared in settings:
        try:
            if isinstance(prepared, UserError):
                raise prepared
            found = _checked(prepared.config, workspace, checked)
            if found.errors:
                raise PreflightError(" ".join(check.detail for check in found.errors))
            runs += replicates(spec, number, setting, prepared.config)
            defaults = preflight.whose_defaults(prepared.config, besides=[axis.field for axis in spec.axes])
            notes |= dict.fromkeys(note for note in (*prepared.notes, defaults) if note)
        except UserError as error:
            causes.setdefault(str(error), []).append(setting)
    problems = tuple(Problem(message=cause, settings=tuple(where)) for cause, where in causes.items())
    with _store_if_any(workspace) as store:
        earlier = store.runs.all(RunStatus.FINISHED, limit=500) if store else ()
    seconds, untimed = _predicted(runs, earlier, checked, workspace)
    run_count = len(runs)
    if spec.learns:
        run_count = min(spec.run_count, len(runs)) if settings.is_complete and not problems else spec.run_count
        if run_count < (spec.trials or 0) * len(spec.seeds):
            there = run_count // len(spec.seeds)
            said = "is only 1 setting" if there == 1 else f"are only {there:,} different settings"
            notes[f"{spec.trials:,} trials were requested, but there {said}: each is sampled once."] = None
    share = run_count / len(runs) if runs else 1.0
    notes |= dict.fromkeys(settings.notes)
    notes |= dict.fromkeys([] if spec.learns else _trained_already(runs, earlier))
    return Plan(
        spec=spec,
        runs=() if spec.learns else tuple(runs),
        problems=problems,
        repeats=tuple(settings.repeats),
        notes=tuple(notes),
        run_count=run_count,
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
        return axis.values[axis.names.index(trial.suggest_categorical(axis.field, axis.names))]
    low, high = axis.ends
    if axis.is_whole:
        return trial.suggest_int(axis.field, low, high, log=axis.log)
    return trial.suggest_float(axis.field, low, high, log=axis.log)


def params(axes: Sequence[Axis], setting: Setting) -> dict[str, Any]:
    """A setting as Optuna stores it: what `suggest` reads back."""
    names = {axis.field: dict(zip(map(repr, axis.values), axis.names, strict=True)) for axis in axes}
    return {field: names[field].get(repr(value), value) for field, value in setting.items()}


def setting_of(axes: Sequence[Axis], stored: Mapping[str, Any]) -> Setting:
    """The setting that Optuna stores as these params."""
    values = {axis.field: dict(zip(axis.names, axis.values, strict=True)) for axis in axes}
    return {
        field: values[field].get(value, value) if values[field] else value
        for field, value in stored.items()
        if field in values
    }


class Distinct:
    """Iterates over (trial number, setting, prepared config or the error) of the settings that are different runs.

    Ends after spec.trial_count settings or, if it finds no more, earlier; no loop is unbounded and no list longer than
    the cap of a sweep. Afterwards, `repeats` and `notes` say what was left out. is_complete: every setting was seen.
    """

    def __init__(self, spec: SweepSpec, before: Before | None = None):
        self.repeats: list[Repeat] = []
        self.is_complete = False
        self._spec, self._before = spec, before
        self._firsts: dict[str, Setting] = dict(before.keys) if before else {}

    def __iter__(self) -> Iterator[tuple[int, Setting, prepare.Prepared | UserError]]:
        spec, before = self._spec, self._before
        is_random = spec.sampler == "random"
        wanted = spec.trial_count if is_random else sweep_spec.MOST_RUNS
        old_count = before.spec.trial_count if before else 0
        trial = before.first_trial if before else 0
        found, missed = 0, 0
        for setting, was_there in self._candidates():
            is_old = found < old_count if is_random else was_there
            try:
                prepared = prepare.prepare(sweep_spec.draft(spec.base, setting, spec.sets))
                _check_readable(prepared.config)
                is_repeat = self._repeats(setting, prepared.config, is_old)
            except UserError as error:
                prepared, is_repeat = error, False
            missed = missed + 1 if is_repeat else 0
            if missed >= MISSES and is_random:
                break
            if is_repeat:
                continue
            if not is_old:
                yield trial, setting, prepared
                trial += 1
            found += 1
            if found >= wanted:
                break
        else:
            ends = math.prod(len(axis.ends) for axis in spec.axes)
            self.is_complete = sweep_spec.setting_count(spec.axes) == ends <= sweep_spec.MOST_RUNS
        if is_random and found < wanted:
            raise self._too_few(wanted, found)

    @property
    def notes(self) -> list[str]:
        """A sentence about the repeats."""
        if not self.repeats:
            return []
        count, one = len(self.repeats), self.repeats[0]
        settings = "1 setting trains" if count == 1 else f"{count:,} settings train"
        done = "is not sampled twice" if self._spec.learns else "left out"
        return [
            f"{settings} the same as another one ({done}): {sweep_spec.label(one.setting)} repeats "
            f"{sweep_spec.label(one.first)}, as {one.why}."
        ]

    def _candidates(self) -> Iterator[tuple[Setting, bool]]:
        """Settings with different values, and whether the sweep had them before: those come first."""
        spec, before = self._spec, self._before
        if spec.sampler == "random":
            yield from ((setting, False) for setting in drawn(spec))
            return
        old = {sweep_spec.same(setting) for setting in sweep_spec.combinations(before.spec.axes)} if before else set()
        if before:
            yield from ((setting, True) for setting in sweep_spec.combinations(before.spec.axes))
        for setting in to_check(spec) if spec.learns else sweep_spec.combinations(spec.axes):
            if sweep_spec.same(setting) not in old:
                yield setting, False

    def _repeats(self, setting: Setting, config: RunConfig, is_old: bool) -> bool:
        key = identity.key(config)
        first = self._firsts.setdefault(key, setting)
        if sweep_spec.same(first) == sweep_spec.same(setting):
            return False
        if not is_old:
            self.repeats.append(Repeat(setting=setting, first=first, why=_why_same(setting, first, config)))
        return True

    def _too_few(self, wanted: int, found: int) -> PreflightError:
        give = "1 different setting" if found == 1 else f"{found:,} different settings"
        because = f" {self.notes[0]}" if self.notes else ""
        return PreflightError(
            f"{wanted:,} trials were requested, but these axes give only {give}: request at most {found:,}.{because}"
        )


def drawn(spec: SweepSpec) -> Iterator[Setting]:
    """The settings of a random sweep, all different: the same for the same sampler_seed, however many are taken.

    Where draws only repeat what there was, the settings that are left follow in random order. Raises PreflightError if
    more are wanted than there are.
    """
    there = sweep_spec.setting_count(spec.axes)
    wanted = spec.trial_count
    if there is not None and wanted > there:
        one = there == 1
        how = "request at most that many" if any(axis.is_range for axis in spec.axes) else "use a grid"
        raise PreflightError(
            f"{wanted:,} trials were requested, but there {'is' if one else 'are'} only {there:,} "
            f"combination{'' if one else 's'}: {how}."
        )
    seen: set[str] = set()
    missed = 0
    for setting in _draws(spec, spec.sampler_seed):
        missed = missed + 1 if sweep_spec.same(setting) in seen else 0
        if missed == MISSES:
            break
        if not missed:
            seen.add(sweep_spec.same(setting))
            yield setting
    yield from others(spec, seen, seed=0)


def others(spec: SweepSpec, seen: Collection[str], *, seed: int) -> Iterator[Setting]:
    """Settings that are not in `seen` (texts of sweep_spec.same), in random order: enough for the largest sweep.

    All of them, if there are no more; for a range of real numbers, those of as many draws.
    """
    there = sweep_spec.setting_count(spec.axes)
    most = len(seen) + 2 * sweep_spec.MOST_RUNS
    if there is None:
        candidates = itertools.islice(_draws(spec, (spec.sampler_seed + seed) % 2**31), most)
    else:
        there = min(there, sys.maxsize)
        numbers = random.Random(spec.sampler_seed + seed).sample(range(there), min(there, most))
        candidates = (sweep_spec.setting_at(spec.axes, number) for number in numbers)
    return (setting for setting in candidates if sweep_spec.same(setting) not in seen)


def _draws(spec: SweepSpec, seed: int) -> Iterator[Setting]:
    """Random settings without end; they may repeat."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    while True:
        trial = study.ask()
        yield {axis.field: suggest(trial, axis) for axis in spec.axes}


def to_check(spec: SweepSpec) -> Iterator[Setting]:
    """Settings that show what cannot work, before a sweep samples any: all combinations of the ends of ranges and the
    listed values or, where these are too many, each value once."""
    if math.prod(len(axis.ends) for axis in spec.axes) <= sweep_spec.MOST_RUNS:
        yield from sweep_spec.combinations(spec.axes)
        return
    usual = {axis.field: axis.ends[0] for axis in spec.axes}
    yield usual
    others = ({**usual, axis.field: value} for axis in spec.axes for value in axis.ends[1:])
    yield from itertools.islice(others, sweep_spec.MOST_RUNS - 1)


def replicates(spec: SweepSpec, number: int, setting: Setting, config: RunConfig) -> list[SweepRun]:
    """The runs of trial `number`: its setting with each seed of the sweep.

    Raises ConfigError if a run could not read its config.
    """
    named = configs.build({**dict(config), "name": sweep_spec.run_name(setting)})
    _check_readable(named)
    return [SweepRun(with_seed(named, seed), number, setting) for seed in spec.seeds]


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """The same config with another seed. Raises ConfigError for one that a run cannot have."""
    return configs.build({**dict(config), "seed": seed})


def _check_readable(config: RunConfig) -> None:
    try:
        RunConfig.model_validate_json(config.model_dump_json())
    except ValueError as error:  # a path that is not valid text
        raise ConfigError(f"{config.title!a} cannot be stored: {' '.join(str(error).split())}") from None


def _check_ranges(spec: SweepSpec) -> None:
    """The ends of a range are values that its field takes. Raises ConfigError."""
    for axis in spec.axes:
        for end in axis.ends if axis.is_range else ():
            draft: dict[str, Any] = {}
            grammar.set_field(draft, axis.field, end)
            if said := configs.problems(draft).get(axis.field):
                raise ConfigError(said, field="axes")


def _why_same(setting: Setting, first: Setting, config: RunConfig) -> str:
    differing = [field for field in setting if setting[field] != first.get(field)]
    unread = [field for field in differing if field in identity.unread(config)]
    if differing == unread:
        return f"{METHODS[config.lora.method].title} does not read {', '.join(unread)} here"
    return "both stand for the same values"


def _trained_already(runs: Sequence[SweepRun], earlier: Sequence[Run]) -> list[str]:
    """A sentence about the runs that were trained before."""
    done = {(identity.key(run.config), run.config.seed): run for run in reversed(earlier)}
    found = [done[at] for run in runs if (at := (identity.key(run.config), run.config.seed)) in done]
    if not found:
        return []
    count = f"{len(found):,} of {len(runs):,} runs {'has' if len(found) == 1 else 'have'}"
    return [f"{count} already been trained here with the same settings and seed, e.g. {found[0].id}."]


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
