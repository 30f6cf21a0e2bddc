"""The definition of a sweep: axes, a sampler, seeds as replicates. Knows no run and no database.

    name: which modules
    axes:
      model: [ast-mini, beats-mini]        # presets: model, lora, training, augment; data: a data set
      targets: [core, attention+mlp]       # any config field; targets is short for lora.targets
      training.lr: {low: 1e-4, high: 1e-2, log: true}
    sets: {late: [layers.2, layers.3]}     # named lists of modules that the axis targets can use
    seeds: [0, 1, 2]
    sampler: random                        # grid, random, tpe, asha
    trials: 12

A setting is one value for each axis. A trial is one setting; each of its seeds is a run.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo

from sousa_engine.core import config, grammar, inputs
from sousa_engine.core.config import Part
from sousa_engine.core.errors import ConfigError, nearest

Sampler = Literal["grid", "random", "tpe", "asha"]
Setting = dict[str, Any]

MOST_RUNS = 1000
MOST_VALUES = MOST_RUNS  # of one axis: a sweep cannot train more
MOST_NAMED = 5  # values listed in an error
MOST_LETTERS = 120  # of a run's name, config.RunConfig
SAMPLERS: dict[str, str] = {
    "grid": "every combination of the listed values",
    "random": "combinations sampled at random",
    "tpe": "tree-structured Parzen estimator: later trials are sampled near the better of the earlier ones",
    "asha": "random sampling, with the weaker trials pruned early (asynchronous successive halving)",
}
LEARNING = ("tpe", "asha")  # samplers whose later settings depend on the results of earlier ones
_SHORT = {"targets": "lora.targets", "data": "data.dataset"}
_NO_AXIS = {
    "seed": "Seeds are replicates of each trial, not an axis: list them under seeds.",
    "name": "The runs of a sweep are named after their settings.",
    "wandb.mode": "Set it under base: all runs share it.",
    "wandb.project": "Set it under base: all runs share it.",
}


class Axis(Part):
    """Listed values, or a range from low to high (both inclusive; whole numbers if the field takes those)."""

    field: str
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False

    @field_validator("field")
    @classmethod
    def _known(cls, field: str) -> str:
        field = full_name(field)
        if field in _NO_AXIS:
            raise ValueError(f"{field} cannot be an axis. {_NO_AXIS[field]}")
        if field not in grammar.PRESET_GROUPS and field not in _fields():
            near = nearest(field, [*grammar.PRESET_GROUPS, *_SHORT, *_fields()])
            raise ValueError(f"{field!r} is not an axis." + (f" Nearest: {', '.join(near)}." if near else ""))
        return field

    @field_validator("values")
    @classmethod
    def _as_field_takes(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        return tuple(grammar.typed(value, info.data.get("field", "")) for value in values)

    @model_validator(mode="after")
    def _one_of_both(self) -> Axis:
        if not self.is_range:
            if self.low is not None or self.high is not None:
                raise ValueError(f"{self.field}: give both low and high.")
            if not self.values:
                raise ValueError(f"{self.field} has no values.")
            if len(self.values) > MOST_VALUES:
                raise ValueError(_too_many(self.field, len(self.values)))
            twice = [text for text, count in Counter(map(_exact, self.values)).items() if count > 1]
            if twice:
                more = f" and {len(twice) - MOST_NAMED:,} others" if len(twice) > MOST_NAMED else ""
                raise ValueError(f"{self.field} lists {', '.join(sorted(twice)[:MOST_NAMED])}{more} twice.")
            return self
        assert self.low is not None and self.high is not None
        if self.values:
            raise ValueError(f"{self.field} has both listed values and a range: keep one of them.")
        if not self.is_number:
            raise ValueError(f"{self.field} is not a number: list its values.")
        if not self.low < self.high:
            raise ValueError(f"{self.field}: low = {self.low:g} must be below high = {self.high:g}.")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.field}: a logarithmic range needs low above 0, not {self.low:g}.")
        if self.is_whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"{self.field} takes whole numbers; {self.low:g} to {self.high:g} is not a range of them.")
        return self

    @property
    def is_range(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def is_whole(self) -> bool:
        return self.field in _fields() and _fields()[self.field].annotation is int

    @property
    def is_number(self) -> bool:
        return self.field in _fields() and _fields()[self.field].annotation in (int, float)

    @property
    def name(self) -> str:
        """The short name: `targets` for lora.targets, `lr` for training.lr."""
        return self.field.rpartition(".")[2]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The listed values, or both ends of the range."""
        if not self.is_range:
            return self.values
        return tuple(int(end) if self.is_whole else end for end in (self.low, self.high))  # type: ignore[arg-type]

    @property
    def count(self) -> int | None:
        """The number of its values; None for a range of real numbers."""
        if not self.is_range:
            return len(self.values)
        return self.ends[1] - self.ends[0] + 1 if self.is_whole else None

    def value(self, number: int) -> Any:
        """Value `number` of an axis that has a count, from 0."""
        return self.ends[0] + number if self.is_range else self.values[number]

    @property
    def names(self) -> tuple[str, ...]:
        """A distinct text for each listed value, for the sampler."""
        names = tuple(show(value) for value in self.values)
        return names if len(set(names)) == len(names) else tuple(_exact(value) for value in self.values)


class SweepSpec(Part):
    name: str = Field("", max_length=120, description="shown in lists; empty = automatic, from the axes")
    sampler: Sampler = Field("grid", description="; ".join(f"{name}: {text}" for name, text in SAMPLERS.items()))
    trials: int | None = Field(None, ge=1, description="how many settings are sampled; a grid takes them all")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="each setting is trained once with each seed")
    sampler_seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the sampler")
    axes: tuple[Axis, ...] = Field(min_length=1, description="what to vary")
    base: dict[str, Any] = Field(default_factory=dict, description="settings that all runs share")
    sets: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="target sets of this sweep only: names and the modules they stand for"
    )

    @field_validator("axes", mode="before")
    @classmethod
    def _written(cls, axes: Any) -> Any:
        """{field: [values] | {low, high, log} | value}, as in YAML."""
        if not isinstance(axes, Mapping):
            return axes
        return [_axis(str(field), what) for field, what in axes.items()]

    @field_validator("base", mode="before")
    @classmethod
    def _read(cls, base: Any) -> Any:
        return grammar.typed_draft(grammar.read(base)) if isinstance(base, Mapping) else base

    @field_validator("seeds", mode="before")
    @classmethod
    def _read_seeds(cls, seeds: Any) -> Any:
        if isinstance(seeds, str):
            return parse_seeds(seeds)
        return [grammar.typed(seed, "seed") for seed in seeds] if isinstance(seeds, list | tuple) else seeds

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        return config.one_line(name)

    @field_validator("seeds")
    @classmethod
    def _seeds_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds = {list(seeds)} lists one twice, which would repeat a run.")
        if min(seeds) < 0:
            raise ValueError(f"seeds = {list(seeds)}: seeds must be 0 or above.")
        if refused := config.problems({"seed": max(seeds)}):
            raise ValueError(refused["seed"])
        return seeds

    @field_validator("sets")
    @classmethod
    def _can_be_shown(cls, sets: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in sets:
            try:
                config.one_line(name)
            except ValueError as error:
                raise ValueError(f"sets: the name {name!r} cannot be used. {error}") from None
        return sets

    @model_validator(mode="after")
    def _whole(self) -> SweepSpec:
        fields = [axis.field for axis in self.axes]
        twice = {field for field in fields if fields.count(field) > 1}
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: each axis can be listed only once.")
        listed = [value for axis in self.axes if axis.field == "lora.targets" for value in axis.values]
        for name, entries in self.sets.items():
            if name not in listed:
                raise ValueError(f"sets defines {name!r}, but the axis targets does not list it.")
            if not entries:
                raise ValueError(f"sets: {name!r} has no modules.")
        ranges = [axis.field for axis in self.axes if axis.is_range]
        if self.sampler == "grid" and ranges:
            raise ValueError(f"A grid needs listed values for {', '.join(ranges)}; or choose random, tpe or asha.")
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError(f"A grid takes every combination: remove trials = {self.trials}, or choose random.")
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"Set how many trials {self.sampler} samples, e.g. trials: 12 (--trials 12).")
        if self.run_count > MOST_RUNS:
            settings = f"{self.trial_count:,} {'setting' if self.trial_count == 1 else 'settings'}"
            raise ValueError(
                f"{settings} × {len(self.seeds):,} seeds are {self.run_count:,} runs; a sweep has at most "
                f"{MOST_RUNS:,}. List fewer values or seeds, or choose random, tpe or asha with fewer trials."
            )
        return self

    @property
    def trial_count(self) -> int:
        """The number of settings; a sampler that learns ends when all that exist have been sampled."""
        there = setting_count(self.axes)
        if self.trials is None:
            return there or 0
        return min(self.trials, there) if self.learns and there is not None else self.trials

    @property
    def run_count(self) -> int:
        return self.trial_count * len(self.seeds)

    @property
    def title(self) -> str:
        return self.name or " × ".join(axis.name for axis in self.axes)

    @property
    def learns(self) -> bool:
        """Whether later settings depend on the results of earlier ones."""
        return self.sampler in LEARNING

    def axis(self, field: str) -> Axis:
        return next(axis for axis in self.axes if axis.field == field)


def build(values: Mapping[str, Any]) -> SweepSpec:
    """A SweepSpec from plain values (YAML, a form). Raises ConfigError that names the field at fault."""
    unknown = [key for key in values if key not in SweepSpec.model_fields]
    if unknown:
        near = nearest(unknown[0], list(SweepSpec.model_fields), n=1)
        raise ConfigError(
            f"A sweep has no field {unknown[0]!r}." + (f" Nearest: {near[0]}." if near else ""), field=unknown[0]
        )
    try:
        return SweepSpec.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        inner = first.get("ctx", {}).get("error")
        if where == "base" and isinstance(inner, ConfigError):
            where = f"base.{inner.field}"
        raise ConfigError(config.sentence(where or "axes", first), field=where) from None


def read(file: Path) -> SweepSpec:
    """A sweep read from a YAML file. Raises ConfigError."""
    values = inputs.yaml_file(file)
    if not isinstance(values, dict) or "axes" not in values:
        raise ConfigError(f"{file} has no axes; expected lines like `axes: {{training.lr: [1e-3, 1e-2]}}`.")
    with inputs.lines_of(file):
        return build(values)


def to_yaml(spec: SweepSpec) -> str:
    """The sweep as YAML; `read` returns an equal spec."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    values["axes"] = {
        axis.field: {"low": axis.low, "high": axis.high, "log": axis.log} if axis.is_range else list(axis.values)
        for axis in spec.axes
    }
    values["seeds"] = list(spec.seeds)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def combinations(axes: Sequence[Axis]) -> Iterator[Setting]:
    """Every combination of the listed values (or both ends of a range), the last axis fastest: a grid's settings.

    One by one: 7 axes of 12 values have 35 million.
    """
    fields = [axis.field for axis in axes]
    for values in itertools.product(*(axis.ends for axis in axes)):
        yield dict(zip(fields, values, strict=True))


def setting_count(axes: Sequence[Axis]) -> int | None:
    """The number of settings; None if a range of real numbers makes it infinite."""
    counts = [axis.count for axis in axes]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def setting_at(axes: Sequence[Axis], number: int) -> Setting:
    """Setting `number` of axes that have a count, from 0; the last axis is fastest."""
    values = []
    for axis in reversed(axes):
        assert axis.count is not None
        number, place = divmod(number, axis.count)
        values.append((axis.field, axis.value(place)))
    return dict(reversed(values))


def axis_fields() -> list[str]:
    """The names that can be an axis: groups of presets, then the fields of a run, in order of declaration."""
    return [name for name in (*grammar.PRESET_GROUPS, *_fields()) if name not in _NO_AXIS]


def draft(base: Mapping[str, Any], setting: Setting, sets: Mapping[str, Sequence[str]] | None = None) -> grammar.Draft:
    """The draft of one run: base, with the presets and then the fields of the setting in place of its own.

    sets: the modules behind the sweep's own names of target sets.
    """
    asked = grammar.read(setting)
    named = setting.get("lora.targets")
    if isinstance(named, str) and named in (sets or {}):
        grammar.set_field(asked, "lora.targets", list((sets or {})[named]))
        grammar.set_field(asked, "lora.target_set", named)
    return grammar.laid_over(dict(base), asked)


def full_name(field: str) -> str:
    """`targets` is lora.targets, `data` is data.dataset; any other field is as written."""
    return _SHORT.get(field, field)


def label(setting: Setting) -> str:
    """`ast-mini · core · lr 0.001`: names unchanged, numbers with their field."""
    parts = []
    for field, value in setting.items():
        text = show(value)
        is_name = field in (*grammar.PRESET_GROUPS, *_SHORT.values(), "model.variant", "lora.method")
        parts.append(text if is_name else f"{field.rpartition('.')[2]} {text}")
    return " · ".join(parts)


def run_name(setting: Setting) -> str:
    """`label` as a run's name: cut to its length (a list of targets can be longer), invisible characters escaped."""
    text = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in label(setting))
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


def show(value: Any) -> str:
    """A value as text: 0.001, `q_proj,v_proj`, ast-mini."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)


def item_text(value: Any) -> str:
    """A value as an axis lists it, exactly: 0.00012345678, core, `[q_proj, v_proj]`, null."""
    if isinstance(value, list | tuple):
        return inputs.list_text(map(str, value))
    if isinstance(value, str):
        return inputs.quoted(value)
    return inputs.number_text(value) if isinstance(value, float) else grammar.written(value)


def same(setting: Setting) -> str:
    """A text that is equal for two settings with the same values."""
    return json.dumps({field: _exact(value) for field, value in setting.items()}, sort_keys=True)


def parse_axis(text: str) -> tuple[str, Any]:
    """`field=a,b`, `field=1e-4..1e-2`, `field=log:1e-4..1e-2` as on the command line -> (field, what `axes` takes).

    Only a field of numbers has a range: ../a is a path. A value that contains commas is written in brackets or quotes:
    `targets=[q_proj,v_proj],core`; numbers may also be separated by semicolons. Raises ConfigError.
    """
    field, equals, written = text.partition("=")
    field, written = field.strip(), written.strip()
    if not equals or not field or not written:
        raise ConfigError(f"{text!r} is not an axis. Write field=a,b or field=low..high, e.g. training.lr=1e-3,1e-2.")
    name = full_name(field)
    if name not in _fields() or _fields()[name].annotation not in (int, float):
        listed = inputs.split(written)
        if len(listed) > MOST_VALUES:
            raise ConfigError(_too_many(field, len(listed)), field=name)
        return field, [grammar.value(part, name) for part in listed]
    spread = written.removeprefix("log:")
    whole = _fields()[name].annotation is int
    if ".." in spread:
        low, high = (inputs.number(end, name, whole=whole, field=name) for end in spread.split("..", 1))
        return field, {"low": low, "high": high, "log": spread != written}
    values = inputs.numbers(written, name, whole=whole, field=name)
    if len(values) > MOST_VALUES:
        raise ConfigError(_too_many(field, len(values)), field=name)
    return field, values


def parse_seeds(text: str) -> list[int]:
    """`0 1 2` or `0, 1, 2`. Raises ConfigError."""
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    if not words or not all(re.fullmatch(r"-?(?:0|[1-9]\d{0,9})", word, re.ASCII) for word in words):
        raise ConfigError(
            f"Seeds must be whole numbers separated by spaces, such as 0 1 2 (you entered {inputs.shown(text)}).",
            field="seeds",
        )
    return [int(word) for word in words]


def _axis(field: str, what: Any) -> dict[str, Any]:
    if isinstance(what, Mapping):
        return {"field": field, **what}
    return {"field": field, "values": what if isinstance(what, list | tuple) else [what]}


def _exact(value: Any) -> str:
    """`show` without rounding: 1 and 1.0 are one value, 0.00123456 and 0.001234561 are two."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)).removesuffix(".0") if is_number and abs(value) < 1e300 else show(value)


def _too_many(field: str, count: int) -> str:
    return (
        f"{field} has {count:,} values; an axis has at most {MOST_VALUES:,}. List fewer, or give a range such as "
        f"{field}=low..high."
    )


def _fields() -> dict[str, FieldInfo]:
    return dict(config.fields())
