"""A sweep as the command line that defines it, read and written."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar, inputs, sweep_spec
from sousa_engine.core.errors import ConfigError, UserError
from sousa_engine.core.sweep_spec import Axis, SweepSpec
from sousa_engine.runs import sweep_plan

MANY = ("--models", "--targets", "--seeds")  # options that take words up to the next option or field=value
_ONE = ("--data", "--max-epochs", "--ablate", "--axis", "--sampler", "--trials", "--sampler-seed", "--name")
_NUMBERS = {"--max-epochs", "--seeds", "--trials", "--sampler-seed"}


def read(words: Sequence[str]) -> SweepSpec:
    """The sweep that `sweep WORDS` defines. Raises UserError; ValueError for an unknown option or a wrong number."""
    given: dict[str, list[Any]] = {option: [] for option in (*MANY, *_ONE)}
    fields, option = [], ""
    for word in words:
        if option in _ONE:
            given[option].append(word)
            option = ""
        elif word.startswith("--"):
            if word not in given:
                raise ValueError(f"There is no option {word}.")
            option = word
        elif "=" in word or not option:
            option = ""
            fields.append(word)
        else:
            given[option].append(word)
    given |= {option: [inputs.number(word, option, whole=True) for word in given[option]] for option in _NUMBERS}
    one = {option: given[option][-1] if given[option] else None for option in _ONE}
    return laid_over(
        None, fields, data=one["--data"], max_epochs=one["--max-epochs"], models=given["--models"],
        targets=given["--targets"], ablate=one["--ablate"], axes=given["--axis"], seeds=given["--seeds"],
        sampler=one["--sampler"], trials=one["--trials"], sampler_seed=one["--sampler-seed"], name=one["--name"],
    )  # fmt: skip


def laid_over(
    file: Path | None,
    words: Sequence[str],
    *,
    data: str | None,
    max_epochs: int | None,
    models: Sequence[str],
    targets: Sequence[str],
    ablate: str | None,
    axes: Sequence[str],
    seeds: Sequence[int],
    sampler: str | None,
    trials: int | None,
    sampler_seed: int | None,
    name: str | None,
) -> SweepSpec:
    """The file's sweep, if there is one, overridden by the options of a command line. Raises UserError.

    None or an empty sequence: not given. Everything else overrides the file, 0 and "" too.
    """
    values = sweep_spec.read(file).model_dump(mode="json") if file else {}
    asked = grammar.parse(words)
    if data is not None:
        grammar.set_field(asked, "data.dataset", data)
    if max_epochs is not None:
        grammar.set_field(asked, "training.max_epochs", max_epochs)
    base = grammar.laid_over(values.get("base", {}), asked)
    made: dict[str, Any] = {axis["field"]: axis for axis in values.get("axes", ())}
    for axis in axes:
        field, what = sweep_spec.parse_axis(axis)
        made[sweep_spec.full_name(field)] = what
    if models:
        made = {"model": _listed(models), **{field: what for field, what in made.items() if field != "model"}}
    if targets and not all(text.strip() for text in targets):
        raise ConfigError("--targets has an empty name. For the head alone (a linear probe): lora=probe.")
    if targets:
        made["lora.targets"] = [grammar.entry_or_list(text) if "," in text else text for text in targets]
    sets = values.get("sets", {})
    if ablate is not None:
        axis = sweep_spec.build({"axes": {"model": made["model"]}}).axes if "model" in made else ()
        sets = sweep_plan.ablation(_only_model(base, axis), grammar.entries(ablate))
        if not isinstance(made.get("lora.targets"), list):  # keep the list of the command line, drop that of the file
            made["lora.targets"] = list(sets)
    if not made:
        raise ConfigError("A sweep must vary something: add --models, --targets, --ablate or --axis FIELD=A,B.")
    if targets or ablate:
        sets = {name: entries for name, entries in sets.items() if name in made["lora.targets"]}
    values |= {"base": base, "axes": made, "sets": sets}
    if sampler == "grid":
        values.pop("trials", None)  # of the file's sampler
    given = {"sampler": sampler, "trials": trials, "sampler_seed": sampler_seed, "name": name}
    values |= {key: value for key, value in given.items() if value is not None}
    spec = sweep_spec.build(values | ({"seeds": list(seeds)} if seeds else {}))
    if both := _given_twice(spec, asked):
        raise ConfigError(f"{both} is an axis of this sweep and a shared setting: give it once.", field=both)
    return spec


def _given_twice(spec: SweepSpec, asked: grammar.Draft) -> str | None:
    """The field of an axis that the command line also sets for all runs, which the axis would override."""
    shared = {word.partition("=")[0] for word in grammar.words(asked)}
    return next((axis.field for axis in spec.axes if grammar.NAMED.get(axis.field, axis.field) in shared), None)


def _listed(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in inputs.split(word)]


def to_command(spec: SweepSpec, *, skip_invalid: bool = False) -> str:
    """The shell command that starts an equal sweep. Raises ConfigError if no command line can express it."""
    words = _words(spec)
    try:
        same = read(words) == spec
    except (UserError, ValueError):
        same = False
    if not same:
        raise ConfigError(
            "This sweep has a value that a command line cannot express. Save its YAML and start that: "
            "python -m sousa_engine sweep --file FILE"
        )
    skip = ["--skip-invalid"] if skip_invalid else []
    return "python -m sousa_engine sweep " + " ".join(shlex.quote(word) for word in [*words, *skip])


def _words(spec: SweepSpec) -> list[str]:
    """`--models` puts its axis first and `--targets` last, so they are used for axes in these places only."""
    base = copy.deepcopy(spec.base)
    axes = {axis.field: axis for axis in spec.axes}
    words: list[str] = []
    if dataset := base.get("data", {}).pop("dataset", None):
        words += ["--data", str(dataset)]
    if epochs := base.get("training", {}).pop("max_epochs", None):
        words += ["--max-epochs", str(epochs)]
    if spec.axes[0].field == "model":
        words += ["--models", *map(str, axes.pop("model").values)]
    made: list[str] = []
    if spec.sets:
        outline = targets.load_outline(backbones.variant(_only_model(spec.base, spec.axes)).name)
        paths = targets.resolve_sets(outline, [entry for entries in spec.sets.values() for entry in entries]).paths
        parts = targets.short_names(outline, paths)
        words += ["--ablate", ",".join(parts)]
        made = list(sweep_plan.ablation(outline.variant, parts))
    target_words: list[str] = []
    if spec.axes[-1].field == "lora.targets" and all(
        len(value) > 1 if isinstance(value, list) else "," not in value for value in spec.axes[-1].values
    ):
        values = axes.pop("lora.targets").values
        target_words = [] if list(values) == made else ["--targets", *map(sweep_spec.show, values)]
    for axis in axes.values():
        words += ["--axis", _axis_text(axis)]
    words += [*target_words, "--seeds", *map(str, spec.seeds)]
    if spec.sampler != "grid":
        words += ["--sampler", spec.sampler, "--trials", str(spec.trials)]
    if spec.sampler_seed:
        words += ["--sampler-seed", str(spec.sampler_seed)]
    if spec.name:
        words += ["--name", spec.name]
    return words + grammar.words(base)


def _axis_text(axis: Axis) -> str:
    """An axis as `sweep_spec.parse_axis` reads it."""
    field = "targets" if axis.field == "lora.targets" else axis.field
    if axis.is_range:
        low, high = (sweep_spec.item_text(end) for end in axis.ends)
        return f"{field}={'log:' if axis.log else ''}{low}..{high}"
    return f"{field}={','.join(sweep_spec.item_text(value) for value in axis.values)}"


def _only_model(base: Mapping[str, Any], axes: Sequence[Axis]) -> str:
    """The backbone whose modules are ablated. Raises ConfigError if there are several."""
    models = next((axis.values for axis in axes if axis.field == "model"), ())
    if len(models) > 1:
        raise ConfigError(f"--ablate takes one backbone, since their modules differ; it got {', '.join(models)}.")
    usual = config.build({}).model.variant
    return str(models[0] if models else base.get("model", {}).get("variant", usual))
