"""Compared runs as settings: one row per setting with its seeds, the axes between settings, differences from a base.

A setting is what a run reads, without the seed (core.identity). In a sweep it has the name that the sweep gives it; two
trials of one setting are one row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from sousa_engine.analysis.compare import Result, describe_targets, results, setting_fields, setting_names, shown
from sousa_engine.analysis.sweeps import TrialRow, trial_row, trial_rows
from sousa_engine.analysis.sweeps import best_first as by_valid
from sousa_engine.core import config as configs
from sousa_engine.core import identity, sweep_spec
from sousa_engine.core.config import RunConfig
from sousa_engine.core.records import Run, RunStatus, Summary

LOG_FROM = 4  # an axis of positive numbers is logarithmic if its highest is at least this many times its lowest
MOST_SHOWN = 8  # settings with a colour, a curve and a matrix; the verdict covers only these
ACCURACIES = {"valid": "valid/accuracy", "test": "test/accuracy"}

Summaries = Mapping[str, Mapping[str, Summary]]  # run id -> metric name -> Summary


@dataclass(frozen=True, kw_only=True)
class SettingAxis:
    """A field that differs between settings. values: one per setting; None if its sweep has no such axis."""

    field: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The short name: `lr` for training.lr."""
        return self.field.rpartition(".")[2]

    @property
    def is_number(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)

    @property
    def is_log(self) -> bool:
        return self.is_number and min(self.values) > 0 and max(self.values) >= LOG_FROM * min(self.values)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(sweep_spec.show(value) for value in self.values)

    @property
    def levels(self) -> tuple[str, ...]:
        """The distinct values as text: numbers ascending, others in order of appearance."""
        if self.is_number:
            return tuple(dict.fromkeys(sweep_spec.show(value) for value in sorted(self.values)))
        return tuple(dict.fromkeys(self.texts))


@dataclass(frozen=True, kw_only=True)
class AgainstBase:
    """Fields that differ between settings. texts[i][j]: field j of setting i; is_base[i][j]: equal to the base."""

    fields: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    is_base: tuple[tuple[bool, ...], ...]


def setting_rows(runs: Sequence[Run], summaries: Summaries) -> tuple[TrialRow, ...]:
    """One row per setting, with the latest run of each seed. All labels are different.

    For the runs of one sweep the rows are its trials, by number; a trial that repeats another one joins it. For others
    they are in the order of the runs, and `setting` holds the fields that differ.
    """
    if runs and runs[0].sweep_id and len({run.sweep_id for run in runs}) == 1:
        return _told_apart(_merged(trial_rows(sorted(runs, key=lambda run: run.created_at_ms), summaries), summaries))
    groups: dict[str, dict[int, Run]] = {}
    for run, result in zip(runs, results(runs, summaries), strict=True):
        seeds = groups.setdefault(result.setting, {})
        if run.config.seed not in seeds or run.created_at_ms >= seeds[run.config.seed].created_at_ms:
            seeds[run.config.seed] = run
    found = [tuple(seeds[seed] for seed in sorted(seeds)) for seeds in groups.values()]
    fields = setting_fields([of[0].config for of in found])
    given = [of[0].config.name.removesuffix(f" · seed {of[0].config.seed}") for of in found]
    often, short = Counter(given), list(setting_names(runs).values())
    names = [name if name and often[name] == 1 else other for name, other in zip(given, short, strict=True)]
    rows = []
    for number, of in enumerate(found):
        row = trial_row(number, of, {field: _plain(of[0].config, field) for field in fields}, summaries)
        rows.append(replace(row, label=names[number]))
    return _told_apart(rows)


def ordered(
    runs: Sequence[Run], summaries: Summaries, *, of_sweep: bool
) -> tuple[tuple[TrialRow, ...], tuple[TrialRow, ...]]:
    """(all settings, the shown settings); those of a sweep come best first."""
    rows = setting_rows(runs, summaries)
    rows = tuple(by_valid(rows)) if of_sweep else rows
    return rows, best(rows, MOST_SHOWN)


def competing(
    runs: Sequence[Run], rows: Sequence[TrialRow], shown: Sequence[TrialRow], *, of_sweep: bool
) -> Sequence[Run]:
    """The runs that the verdict covers: those of the shown settings."""
    return runs if len(shown) == len(rows) and not of_sweep else [run for row in shown for run in row.runs]


def best(rows: Sequence[TrialRow], limit: int) -> tuple[TrialRow, ...]:
    """All rows in their order, if there are at most `limit`; otherwise the best by mean valid accuracy, best first."""
    return tuple(rows) if len(rows) <= limit else tuple(by_valid(rows)[:limit])


def names_in_verdict(rows: Sequence[TrialRow], found: Sequence[Result]) -> dict[str, str]:
    """Result.setting -> the label of its row, for compare.conclude."""
    labels = {run.id: row.label for row in rows for run in row.runs}
    return {result.setting: labels[result.run_id] for result in found if result.run_id in labels}


def has_axes(rows: Sequence[TrialRow], of_sweep: bool) -> bool:
    """Whether there are enough runs to estimate which axis matters."""
    return of_sweep or (len(rows) >= 3 and sum(len(row.runs) for row in rows) >= 6)


def reached(row: TrialRow, summaries: Summaries, split: str) -> tuple[float, ...]:
    """Best valid accuracy or test accuracy of the finished seeds of a setting. Empty if it was pruned."""
    if row.is_pruned:
        return ()
    found = (summaries.get(run.id, {}).get(ACCURACIES[split]) for run in row.runs if run.status is RunStatus.FINISHED)
    values = ((summary.best if split == "valid" else summary.last) for summary in found if summary)
    return tuple(value for value in values if value is not None)


def setting_axes(rows: Sequence[TrialRow]) -> tuple[SettingAxis, ...]:
    """The fields with at least two values among the settings, in order of appearance."""
    fields = dict.fromkeys(field for row in rows for field in row.setting)
    axes = [SettingAxis(field=field, values=tuple(row.setting.get(field) for row in rows)) for field in fields]
    return tuple(axis for axis in axes if len(axis.levels) > 1)


def against_base(rows: Sequence[TrialRow], base: int) -> AgainstBase:
    """The config fields that differ, as text, compared with rows[base]; seeds too if they differ."""
    differing = configs.differences([row.runs[0].config for row in rows])
    columns = {
        field: tuple(shown(field, value) for value in values)
        for field, values in differing.items()
        if field not in ("name", "seed")
    }
    seeds = tuple(", ".join(str(run.config.seed) for run in row.runs) for row in rows)
    if len(set(seeds)) > 1:
        columns["seed"] = seeds
    texts = tuple(zip(*columns.values(), strict=True)) if columns else ((),) * len(rows)
    is_base = tuple(tuple(a == b for a, b in zip(row, texts[base], strict=True)) for row in texts)
    return AgainstBase(fields=tuple(columns), texts=texts, is_base=is_base)


def lead(row: TrialRow, base: TrialRow, split: str) -> float | None:
    """Mean accuracy of a setting minus that of the base, a share in [-1, 1]; None if either was not measured."""
    ours, theirs = (row.mean_test, base.mean_test) if split == "test" else (row.mean_valid, base.mean_valid)
    return None if ours is None or theirs is None else ours - theirs


def mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _plain(config: RunConfig, field: str) -> Any:
    """The value of a config field on an axis: targets by the name of their set, if they have one."""
    value = configs.value_of(config, field)
    if field == "lora.targets":
        return config.lora.target_set or describe_targets([target.path for target in value])
    return shown(field, value) if isinstance(value, tuple) else value


def _merged(rows: Sequence[TrialRow], summaries: Summaries) -> list[TrialRow]:
    """Rows of one setting as one row, with the latest run of each seed."""
    alike: dict[str, list[TrialRow]] = {}
    for row in rows:
        alike.setdefault(identity.key(row.runs[0].config), []).append(row)
    found = []
    for first, *others in alike.values():
        runs = sorted((run for row in (first, *others) for run in row.runs), key=lambda run: run.created_at_ms)
        seeds = {run.config.seed: run for run in runs}
        of = tuple(seeds[seed] for seed in sorted(seeds))
        found.append(trial_row(first.number, of, first.setting, summaries) if others else first)
    return found


def _told_apart(rows: Sequence[TrialRow]) -> tuple[TrialRow, ...]:
    """Append the setting to equal labels and, if they are still equal, a number."""
    for mark in (lambda row: sweep_spec.label(dict(row.setting)), lambda row: f"setting {row.number}"):
        often = Counter(row.label for row in rows)
        rows = [
            replace(row, label=f"{row.label} · {said}")
            if often[row.label] > 1 and (said := mark(row)) and said not in row.label
            else row
            for row in rows
        ]
    return tuple(rows)
