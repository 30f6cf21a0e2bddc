"""Runs side by side: what differs in their settings, what they reached, and what may be concluded from that."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sousa_engine import config as configs
from sousa_engine.analysis.significance import PairedDifference, Proportion, best_accuracy, last_accuracy
from sousa_engine.config import RunConfig
from sousa_engine.records import Run, Summary

ENOUGH_SEEDS = 3
_NOT_A_SETTING = ("name", "seed", "device", "wandb.mode", "wandb.project", "lora.target_set")
_SAME_CLIPS = ("data.dataset", "data.clip_s", "data.valid_fraction", "data.test_fraction", "data.split_seed")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field that is not the same in all runs; values are in the order of the runs, made readable."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one run reached. Missing numbers are None. seconds: from start to end, None while it runs."""

    run_id: str
    title: str
    status: str
    is_random: bool
    seed: int
    trainable: int | None
    total: int | None
    seconds: float | None
    best_valid: Proportion | None
    best_step: int | None
    last_valid: Proportion | None
    test: Proportion | None
    test_macro_f1: float | None
    setting: str  # equal for two runs that differ in nothing but seed, name and device
    clips: str  # equal for two runs that were measured on the same clips


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """verdict: one sentence on what the runs allow to say. notes: sentences that qualify it."""

    verdict: str
    notes: tuple[str, ...] = ()


def config_differences(runs: Sequence[Run]) -> tuple[Difference, ...]:
    found = configs.differences([run.config for run in runs])
    return tuple(
        Difference(field=field, values=tuple(shown(field, value) for value in values))
        for field, values in found.items()
        if field != "name"
    )


def changes_from_defaults(config: RunConfig) -> tuple[Difference, ...]:
    """Fields that were set to something else than their default; values: (default, here)."""
    found = configs.differences([RunConfig(), config])  # pyright: ignore[reportCallIssue]
    return tuple(
        Difference(field=field, values=tuple(shown(field, value) for value in values))
        for field, values in found.items()
        if field != "name"
    )


def results(runs: Sequence[Run], summaries: Mapping[str, Mapping[str, Summary]]) -> tuple[Result, ...]:
    """One row a run, in the order given. summaries: run id -> metric name -> Summary."""
    return tuple(_result(run, summaries.get(run.id, {})) for run in runs)


def conclude(rows: Sequence[Result]) -> Conclusion:
    """What these results allow to say about settings. One seed of a setting never makes a winner."""
    notes = []
    if any(row.is_random for row in rows) and not all(row.is_random for row in rows):
        notes.append("A run on random weights is a control: it shows what training reaches without pre-training.")
    if len({row.clips for row in rows}) > 1:
        return Conclusion(
            verdict="No conclusion: the runs were not measured on the same clips (data set or split differ).",
            notes=tuple(notes),
        )
    unmeasured = [row.title for row in rows if row.test is None]
    if unmeasured:
        missing = (
            f"{_enumerate(unmeasured)} {'has' if len(unmeasured) == 1 else 'have'} no test result, "
            "which is measured once, at the end."
        )
        measured = [row for row in rows if row.test is not None]
        if len(measured) < 2:
            return Conclusion(verdict=f"No conclusion: {missing}", notes=tuple(notes))
        found = conclude(measured)
        return Conclusion(verdict=found.verdict, notes=(f"Left out of this: {missing}", *found.notes))
    groups: dict[str, list[Result]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    if len(groups) == 1:
        if len({row.seed for row in rows}) == 1:
            return Conclusion(verdict="The same setting with the same seed: nothing to compare.", notes=tuple(notes))
        return Conclusion(
            verdict=f"One setting, {len(rows)} seeds: test accuracy {_range(rows)}. "
            "That is the spread between seeds, and no comparison of settings.",
            notes=tuple(notes),
        )
    seeds = {setting: len({row.seed for row in group}) for setting, group in groups.items()}
    fewest = min(seeds.values())
    if fewest < ENOUGH_SEEDS:
        few = "One seed each" if max(seeds.values()) == 1 else f"Fewer than {ENOUGH_SEEDS} seeds of a setting"
        return Conclusion(
            verdict=f"{few}: no conclusion about the settings.",
            notes=(
                *notes,
                "An interval below covers the choice of test clips. It does not cover the luck of a seed: "
                f"train each setting with {ENOUGH_SEEDS} seeds or more.",
            ),
        )
    return Conclusion(verdict=_verdict(list(groups.values())), notes=tuple(notes))


def paired_sentence(first: str, second: str, difference: PairedDifference) -> str:
    """What two runs' predictions on the same clips say about these two networks, and about nothing else."""
    d = difference
    what = (
        "the two trained networks differ on these clips"
        if d.is_clear
        else "these clips cannot tell the two trained networks apart"
    )
    points = [f"{100 * value:+.1f}".replace("-", "−") for value in (d.difference, d.low, d.high)]
    return (
        f"On the same {d.n} test clips, {second} alone is right on {d.only_second} and {first} alone on "
        f"{d.only_first}: {points[0]} points for {second} (95 % interval {points[1]} to {points[2]}); {what}."
    )


def shown(field: str, value: Any) -> str:
    """A config value as people read it: targets by their names, rates without trailing zeros."""
    if field == "lora.targets":
        return describe_targets(value)
    if value is None or value == "":
        return "unset"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def describe_targets(paths: Sequence[str]) -> str:
    """`24 modules: q_proj ×4, k_proj ×4, ... in layers 0 to 3`; `none (the head alone)` when there are none."""
    if not paths:
        return "none (the head alone)"
    kinds = Counter(_last_name(path) for path in paths)
    layers = sorted({int(part) for path in paths for part in path.split(".") if part.isdecimal()})
    names = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in kinds.items())
    where = "" if not layers else f" in layer {layers[0]}" if len(layers) == 1 else f" in layers {_spans(layers)}"
    return f"{len(paths)} module{'s' if len(paths) > 1 else ''}: {names}{where}"


def _last_name(path: str) -> str:
    """From the last part that is a name on: `q_proj`, or `block.0.0` of a convolution in a Sequential."""
    parts = path.split(".")
    named = max((i for i, part in enumerate(parts) if not part.isdecimal()), default=0)
    return ".".join(parts[named:])


def setting_fields(of: Sequence[RunConfig]) -> tuple[str, ...]:
    """The fields that make these configs different settings: those that differ, without seed, name and device."""
    return tuple(field for field in configs.differences(list(of)) if field not in _NOT_A_SETTING)


def _result(run: Run, summaries: Mapping[str, Summary]) -> Result:
    f1 = summaries.get("test/macro_f1")
    valid = summaries.get("valid/accuracy")
    counts = parameters(run)
    over = run.status.is_over and run.started_at_ms is not None and run.ended_at_ms is not None
    return Result(
        run_id=run.id,
        title=run.title,
        status=run.status.value,
        is_random=run.is_random,
        seed=run.config.seed,
        trainable=counts.get("trainable"),
        total=counts.get("total"),
        seconds=(run.ended_at_ms - run.started_at_ms) / 1000 if over else None,  # pyright: ignore[reportOptionalOperand]
        best_valid=best_accuracy(valid),
        best_step=valid.best_step if valid else None,
        last_valid=last_accuracy(valid),
        test=last_accuracy(summaries.get("test/accuracy")),
        test_macro_f1=f1.last if f1 else None,
        setting=_key(run.config, leave_out=_NOT_A_SETTING),
        clips=_key(run.config, only=_SAME_CLIPS),
    )


def parameters(run: Run) -> dict[str, int]:
    """Counts the trainer took from the network itself ("trainable", "total"); empty until it has built one."""
    counts = run.facts.get("parameters")
    return {k: int(v) for k, v in counts.items() if isinstance(v, int)} if isinstance(counts, Mapping) else {}


def _key(config: RunConfig, *, leave_out: Sequence[str] = (), only: Sequence[str] | None = None) -> str:
    dump = config.model_dump(mode="json")
    kept = {}
    for field, _ in configs.fields():
        if field in leave_out or (only is not None and field not in only):
            continue
        value: Any = dump
        for part in field.split("."):
            value = value[part]
        kept[field] = value
    return json.dumps(kept, sort_keys=True)


def _verdict(groups: list[list[Result]]) -> str:
    groups = sorted(groups, key=_mean, reverse=True)
    parts = [f"{group[0].title} (and its seeds): {_range(group)}" for group in groups]
    apart = all(
        min(row.test.value for row in better if row.test) > max(row.test.value for row in worse if row.test)
        for better, worse in itertools.pairwise(groups)
    )
    ending = (
        "The ranges do not overlap on this data set."
        if apart
        else "The ranges overlap: no setting is clearly ahead on this data set."
    )
    return f"Test accuracy over seeds. {'; '.join(parts)}. {ending}"


def _mean(rows: Sequence[Result]) -> float:
    values = [row.test.value for row in rows if row.test]
    return sum(values) / len(values)


def _range(rows: Sequence[Result]) -> str:
    values = [100 * row.test.value for row in rows if row.test]
    return f"{min(values):.1f} to {max(values):.1f} %, mean {sum(values) / len(values):.1f} % of {len(values)} seeds"


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _spans(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0 to 2, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
