"""Runs side by side: how their settings differ, what they achieved, and which conclusion that supports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sousa_engine.analysis import verdict as verdicts
from sousa_engine.analysis.significance import PairedDifference, Proportion, best_accuracy, last_accuracy
from sousa_engine.analysis.verdict import ENOUGH_SEEDS, Measured, Pair, Standing, listed, points
from sousa_engine.core import config as configs
from sousa_engine.core import identity
from sousa_engine.core.config import RunConfig
from sousa_engine.core.methods import METHODS
from sousa_engine.core.records import Prediction, Run, Summary

MOST_NAMED = 3  # runs listed in a note; of more, only the number is given
LONGEST_NAME = 60  # characters; a setting with a longer name is named by the title of a run
_NOT_A_SETTING = ("name", "seed", "device", "wandb.mode", "wandb.project", "lora.target_set")
_SAME_CLIPS = ("data.dataset", "data.clip_s", "data.valid_fraction", "data.test_fraction", "data.split_seed")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A field that differs between runs. values: one readable text per run, in their order."""

    field: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of one run. Missing numbers are None. seconds: from start to end, None while it runs."""

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
    setting: str  # equal for two runs that train the same network, apart from the seed: core.identity
    clips: str  # equal for two runs that were tested on the same clips


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """verdict: the conclusion that the runs support, in one or more sentences. notes: sentences that qualify it.

    pairs and order (settings by their mean) are empty if no settings were compared.
    """

    verdict: str
    notes: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    order: tuple[Standing, ...] = ()


def config_differences(runs: Sequence[Run]) -> tuple[Difference, ...]:
    found = configs.differences([run.config for run in runs])
    return tuple(
        Difference(field=field, values=tuple(shown(field, value) for value in values))
        for field, values in found.items()
        if field != "name"
    )


def changes_from_defaults(config: RunConfig) -> tuple[Difference, ...]:
    """Fields that differ from their default; values: (default, value in this config)."""
    found = configs.differences([RunConfig(), config])  # pyright: ignore[reportCallIssue]
    return tuple(
        Difference(field=field, values=tuple(shown(field, value) for value in values))
        for field, values in found.items()
        if field != "name"
    )


def results(runs: Sequence[Run], summaries: Mapping[str, Mapping[str, Summary]]) -> tuple[Result, ...]:
    """One row per run, in the given order. summaries: run id -> metric name -> Summary."""
    return tuple(_result(run, summaries.get(run.id, {})) for run in runs)


def setting_names(runs: Sequence[Run]) -> dict[str, str]:
    """Result.setting -> a short name that distinguishes it from the other settings: "r=4", "random weights".

    The name has all fields that differ between settings, and no others; alpha only if alpha / r differs. If it would be
    longer than LONGEST_NAME or not unique, the setting is named by the title of its first run, without the seed.
    """
    firsts: dict[str, Run] = {}
    for run in runs:
        firsts.setdefault(_setting(run), run)
    fields = [f for f in configs.differences([run.config for run in firsts.values()]) if f not in _NOT_A_SETTING]
    if len({run.config.lora.alpha / run.config.lora.r for run in firsts.values()}) == 1:
        fields = [field for field in fields if field != "lora.alpha"]
    names = {setting: _name(run.config, fields) for setting, run in firsts.items()}
    if all(0 < len(name) <= LONGEST_NAME for name in names.values()) and len(set(names.values())) == len(names):
        return names
    return _titles({setting: (run.title, run.config.seed, run.id) for setting, run in firsts.items()})


def run_names(runs: Sequence[Run]) -> list[str]:
    """Titles. Equal titles get the seed appended and, if they are still equal, the end of the id."""
    names = [run.title for run in runs]
    for mark in (lambda run: f"seed {run.config.seed}", lambda run: run.id[-4:]):
        alike = {name for name, count in Counter(names).items() if count > 1}
        names = [f"{name} · {mark(run)}" if name in alike else name for run, name in zip(runs, names, strict=True)]
    return names


def conclude(
    rows: Sequence[Result],
    predictions: Mapping[str, Sequence[Prediction]] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    excluded: Mapping[str, str] | None = None,
) -> Conclusion:
    """The conclusion that these results support about settings. A single seed of a setting never makes a winner.

    predictions: run id -> its predictions on the test split. names: setting_names(); by default, settings are named by
    the title of their first run. excluded: run id -> the reason why it does not compete (pruned); such runs are only
    listed in a note.
    """
    if excluded and any(row.run_id in excluded for row in rows):
        out = [f"{_titled(row)} is excluded: {excluded[row.run_id]}." for row in rows if row.run_id in excluded]
        found = conclude([row for row in rows if row.run_id not in excluded], predictions, names=names)
        return replace(found, notes=(*out, *found.notes))
    if len(rows) < 2:
        return Conclusion(verdict="No conclusion: fewer than two runs compete.")
    notes = []
    if any(row.is_random for row in rows) and not all(row.is_random for row in rows):
        notes.append("A run on random weights is a control: it shows what training achieves without pre-training.")
    if len({row.clips for row in rows}) > 1:
        return Conclusion(
            verdict="No conclusion: the runs were not tested on the same clips (data set or split differs).",
            notes=tuple(notes),
        )
    unmeasured = [_titled(row) for row in rows if row.test is None]
    if unmeasured:
        named = listed(unmeasured) if len(unmeasured) <= MOST_NAMED else f"{len(unmeasured)} of {len(rows)} runs"
        missing = (
            f"{named} {'has' if len(unmeasured) == 1 else 'have'} no test result; "
            "the test set is evaluated only when a run completes."
        )
        measured = [row for row in rows if row.test is not None]
        if len(measured) < 2:
            return Conclusion(verdict=f"No conclusion: {missing}", notes=tuple(notes))
        found = conclude(measured, predictions, names=names)
        return replace(found, notes=(f"Excluded: {missing}", *found.notes))
    groups: dict[str, list[Result]] = {}
    for row in rows:
        groups.setdefault(row.setting, []).append(row)
    if len(groups) == 1:
        if len({row.seed for row in rows}) == 1:
            return Conclusion(
                verdict="These runs have the same setting and the same seed: there is nothing to compare.",
                notes=tuple(notes),
            )
        return Conclusion(
            verdict=f"One setting, {len(rows)} seeds: test accuracy {_range(rows)}. "
            "This is the variation between seeds, not a comparison of settings.",
            notes=tuple(notes),
        )
    if all(len({row.seed for row in group}) == 1 for group in groups.values()):
        return Conclusion(
            verdict="One seed each: no conclusion about the settings.",
            notes=(
                *notes,
                "The intervals reflect the sample of test clips, not variation between seeds: "
                f"train each setting with at least {ENOUGH_SEEDS} seeds.",
            ),
        )
    names = names or _titles({setting: (g[0].title, g[0].seed, g[0].run_id) for setting, g in groups.items()})
    found = verdicts.groups(
        [
            Measured(
                run=_titled(row),
                group=names[row.setting],
                seed=row.seed,
                predictions=(predictions or {}).get(row.run_id, ()),
                is_control=row.is_random,
            )
            for row in rows
        ]
    )
    said = verdicts.verdict(found.groups, excluded=found.left_out)
    return Conclusion(verdict=said.sentence, notes=(*notes, *said.notes), pairs=said.pairs, order=said.order)


def paired_sentence(first: str, second: str, difference: PairedDifference) -> str:
    """Compare two trained networks by their predictions on the same clips; it says nothing about their settings."""
    d = difference
    what = (
        "the two trained networks differ on these clips"
        if d.is_clear
        else "these clips do not distinguish the two trained networks"
    )
    lead, low, high = (points(value, plus=True) for value in (d.difference, d.low, d.high))
    return (
        f"On the same {d.n} test clips, {second} is right and {first} wrong on {d.only_second} clips, the reverse on "
        f"{d.only_first}: {lead} points for {second} (95 % interval {low} to {high}); {what}."
    )


def shown(field: str, value: Any) -> str:
    """A config value as readable text: targets by their names, rates without trailing zeros."""
    if field == "lora.targets":
        return describe_targets(value)
    if value is None or value == "":
        return "unset"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def describe_targets(paths: Sequence[str]) -> str:
    """`24 modules: q_proj ×4, k_proj ×4, ... in layers 0 to 3`; `none (the head alone)` without targets."""
    if not paths:
        return "none (the head alone)"
    kinds = Counter(_last_name(path) for path in paths)
    layers = sorted({int(part) for path in paths for part in path.split(".") if part.isdecimal()})
    names = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in kinds.items())
    where = "" if not layers else f" in layer {layers[0]}" if len(layers) == 1 else f" in layers {_spans(layers)}"
    return f"{len(paths)} module{'s' if len(paths) > 1 else ''}: {names}{where}"


def _last_name(path: str) -> str:
    """The path from its last part that is not a number: `q_proj`, or `block.0.0` for a convolution."""
    parts = path.split(".")
    named = max((i for i, part in enumerate(parts) if not part.isdecimal()), default=0)
    return ".".join(parts[named:])


def setting_fields(of: Sequence[RunConfig]) -> tuple[str, ...]:
    """The fields in which these settings differ; seed, name and device are not part of a setting."""
    return tuple(field for field in configs.differences(list(of)) if field not in _NOT_A_SETTING)


def _result(run: Run, summaries: Mapping[str, Summary]) -> Result:
    f1 = summaries.get("test/macro_f1")
    valid = summaries.get("valid/accuracy")
    counts = parameters(run)
    return Result(
        run_id=run.id,
        title=run.title,
        status=run.status.value,
        is_random=run.is_random,
        seed=run.config.seed,
        trainable=counts.get("trainable"),
        total=counts.get("total"),
        seconds=run.seconds if run.status.is_over else None,
        best_valid=best_accuracy(valid),
        best_step=valid.best_step if valid else None,
        last_valid=last_accuracy(valid),
        test=last_accuracy(summaries.get("test/accuracy")),
        test_macro_f1=f1.last if f1 else None,
        setting=_setting(run),
        clips=_key(run.config, only=_SAME_CLIPS),
    )


def parameters(run: Run) -> dict[str, int]:
    """Parameter counts of the built network ("trainable", "total"); empty until the trainer has built it."""
    counts = run.facts.get("parameters")
    return {k: int(v) for k, v in counts.items() if isinstance(v, int)} if isinstance(counts, Mapping) else {}


def _titled(row: Result) -> str:
    """The title with the seed, because runs of one setting often have the same name."""
    seed = f" · seed {row.seed}"
    return f"{row.title.removesuffix(seed)}{seed}"


def _setting(run: Run) -> str:
    return identity.key(run.config)


def _name(config: RunConfig, fields: Sequence[str]) -> str:
    """A short name from `fields` of a config: "attention · lr=0.0005"; targets by the name of their set, if any."""
    words = []
    for field in fields:
        value = configs.value_of(config, field)
        if field == "lora.targets":
            paths = [target.path for target in value]
            words.append(config.lora.target_set or (describe_targets(paths) if paths else "the head alone"))
        elif field == "lora.method":
            words.append(METHODS[value].title)
        elif field == "model.weights":
            words.append("random weights" if value == "random" else shown(field, value))
        elif field == "model.variant":
            words.append(value)
        else:
            words.append(f"{field.rsplit('.', 1)[-1]}={shown(field, value)}")
    if len(words) > 1 and "pretrained" in words:
        words.remove("pretrained")  # the default; only random weights need a mention
    return " · ".join(words)


def _titles(firsts: Mapping[str, tuple[str, int, str]]) -> dict[str, str]:
    """Setting -> its title, from (title, seed, id) of its first run; equal titles get the end of the id."""
    titles = {setting: title.removesuffix(f" · seed {seed}") for setting, (title, seed, _) in firsts.items()}
    often = Counter(titles.values())
    return {s: title if often[title] == 1 else f"{title} · {firsts[s][2][-4:]}" for s, title in titles.items()}


def _key(config: RunConfig, *, only: Sequence[str]) -> str:
    dump = config.model_dump(mode="json")
    kept = {}
    for field, _ in configs.fields():
        if field not in only:
            continue
        value: Any = dump
        for part in field.split("."):
            value = value[part]
        kept[field] = value
    return json.dumps(kept, sort_keys=True)


def _range(rows: Sequence[Result]) -> str:
    values = [100 * row.test.value for row in rows if row.test]
    return f"{min(values):.1f} to {max(values):.1f} %, mean {sum(values) / len(values):.1f} % of {len(values)} seeds"


def _spans(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0 to 2, 5"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in spans)
