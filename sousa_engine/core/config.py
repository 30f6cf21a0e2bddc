"""The settings of a run: validated when built, frozen, JSON both ways.

One source for validation, forms, help and the command line: every field has a label (`title`), a line of help
(`description`), a default and bounds.
Source of the defaults: our own trials on the embedded data (DECISIONS.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from sousa_engine.core import inputs
from sousa_engine.core.errors import ConfigError, nearest
from sousa_engine.core.methods import METHODS

HeadPolicy = Literal["train", "lora", "freeze"]
HEAD_TITLES: dict[str, str] = {"train": "Train fully", "lora": "LoRA", "freeze": "Freeze"}
MethodName = Literal["lora", "rslora", "dora", "pissa", "loraplus", "lokr", "ia3", "adalora", "bitfit", "full"]
AnyPart = TypeVar("AnyPart", bound=BaseModel)


# Control characters, and those that change the direction of the text after them (Unicode TR 9).
_TURNING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


_UNREADABLE = "unreadable"  # the type of an error whose message is the predicate of a sentence


def one_line(name: str) -> str:
    """A name with single spaces. Raises ValueError if it holds characters that would not be shown as written."""
    line = " ".join(name.split())
    if found := _TURNING.search(line):
        raise ValueError(f"U+{ord(found[0]):04X} is an invisible character that can reverse text: remove it.")
    return line


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Text for a number, or a number for text, as files and forms hold them."""
        try:
            return inputs.as_type(value, cls.model_fields[str(info.field_name)].annotation)
        except ValueError as error:
            raise PydanticCustomError(_UNREADABLE, "{wanted}", {"wanted": str(error)}) from None


class TargetModule(Part):
    """One module that gets an adapter: full path, kind and weight shape, matched again at launch."""

    path: str = Field(min_length=1, description="full path in the network, e.g. layers.0.attention.q_proj")
    kind: str = Field(description="Linear, Conv1d, Conv2d or Embedding")
    shape: tuple[int, ...] = Field(description="shape of its weight, e.g. (768, 768)")

    @property
    def width(self) -> int:
        """The highest rank an update of it can have."""
        return min(self.shape[0], math.prod(self.shape[1:]))


class ModelConfig(Part):
    variant: str = Field(
        "ast-mini", title="Backbone", description="pretrained network, e.g. ast-mini (embedded) or ast-base"
    )
    weights: str = Field(
        "pretrained",
        title="Weights",
        description="pretrained, random (a control: labelled everywhere), or the path of a weights file or folder",
    )


class LoraConfig(Part):
    method: MethodName = Field(
        "lora", title="Method", description="how the targets are adapted; bitfit and full take no targets"
    )
    targets: tuple[TargetModule, ...] = Field(
        (), title="Target modules", description="modules that get an adapter; none = train the head alone"
    )
    target_set: str = Field("", title="Target set", description="name of the set that the targets came from")
    rank_pattern: tuple[tuple[str, int], ...] = Field(
        (), title="Ranks", description="separate ranks for some targets, {path: rank}; alpha / r is kept"
    )
    r: int = Field(8, ge=1, le=1024, title="Rank r", description="rank of every adapter")
    alpha: float = Field(
        16, gt=0, le=65536, title="Alpha", description="adapters are scaled by alpha / r; 2r is a good start"
    )
    dropout: float = Field(0.0, ge=0, lt=1, title="Dropout", description="dropout before A; 0 = none")
    plus_ratio: float = Field(
        16, ge=1, le=1000, title="LoRA+ ratio (B : A)", description="LoRA+ only: learning rate of B relative to A's"
    )
    head: HeadPolicy = Field(
        "train", title="Head", description="the new classifier: train it fully, adapt it with LoRA, or freeze it"
    )

    @field_validator("targets")
    @classmethod
    def _once_each(cls, targets: tuple[TargetModule, ...]) -> tuple[TargetModule, ...]:
        seen: set[str] = set()
        for target in targets:
            if target.path in seen:
                raise ValueError(f"{target.path} is listed twice.")
            seen.add(target.path)
        return targets

    @field_validator("targets")
    @classmethod
    def _method_fits(cls, targets: tuple[TargetModule, ...], info: ValidationInfo) -> tuple[TargetModule, ...]:
        method = METHODS[info.data.get("method", "lora")]
        if targets and not method.takes_targets:
            raise ValueError(f"{method.title} takes no targets: leave lora.targets empty.")
        for target in targets:
            if reason := method.reason(target.kind):
                raise ValueError(f"{target.path}: {reason} Untick it, or choose another lora.method.")
        return targets

    @field_validator("rank_pattern", mode="before")
    @classmethod
    def _pairs(cls, ranks: Any) -> Any:
        if isinstance(ranks, Mapping):
            ranks = sorted((str(path), rank) for path, rank in ranks.items())
        if not isinstance(ranks, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in ranks):
            return ranks
        return tuple((path, _rank(path, rank)) for path, rank in ranks)

    @field_validator("rank_pattern")
    @classmethod
    def _ranks_fit(cls, ranks: tuple[tuple[str, int], ...], info: ValidationInfo) -> tuple[tuple[str, int], ...]:
        method, targets = METHODS[info.data.get("method", "lora")], info.data.get("targets", ())
        if ranks and not method.takes_ranks:
            raise ValueError(f"{method.title} does not support separate ranks: leave lora.rank_pattern empty.")
        widths = {target.path: target.width for target in targets}
        own = dict(ranks)
        if len(own) < len(ranks):
            raise ValueError("A module is listed twice.")
        for path, rank in ranks:
            if path not in widths:
                near = nearest(path, widths, n=1)
                raise ValueError(f"{path} is not a target of this run." + (f" Nearest: {near[0]}." if near else ""))
            if not 1 <= rank <= widths[path]:
                raise ValueError(f"rank {rank} of {path} must be from 1 to {widths[path]}, its width.")
        return ranks

    @field_validator("r")
    @classmethod
    def _rank_fits(cls, r: int, info: ValidationInfo) -> int:
        """Only for methods that read it. AdaLoRA starts higher and never exceeds a module's width."""
        method, own = METHODS[info.data.get("method", "lora")], dict(info.data.get("rank_pattern", ()))
        for target in info.data.get("targets", ()) if "r" in method.settings and method.name != "lokr" else ():
            if target.path not in own and r > target.width:
                remedy = ", give that module a lower rank (lora.rank_pattern)" if method.takes_ranks else ""
                raise ValueError(
                    f"lora.r = {r} is above the width of {target.path} ({target.width}). "
                    f"Choose r <= {target.width}{remedy}, or untick that module."
                )
        return r

    @field_validator("head")
    @classmethod
    def _head_has_a_way(cls, head: HeadPolicy, info: ValidationInfo) -> HeadPolicy:
        method = METHODS[info.data.get("method", "lora")]
        if head == "lora" and not method.takes_targets:
            raise ValueError(f"{method.title} has no adapter for the head: set lora.head to train or freeze.")
        return head

    @property
    def summary(self) -> str:
        """Short summary of the trainable parameters besides the head: "24 modules with LoRA r=8"."""
        if not METHODS[self.method].takes_targets:
            return self.label
        if not self.targets and self.head != "lora":
            return "the head alone"
        count = len(self.targets) + (self.head == "lora")
        own = f" ({len(self.rank_pattern)} with a separate rank)" if self.rank_pattern else ""
        return f"{count} {'module' if count == 1 else 'modules'} with {self.label}{own}"

    @property
    def label(self) -> str:
        """The method, with its rank if it has one: "LoRA r=8" or "IA3"."""
        method = METHODS[self.method]
        return f"{method.title} r={self.r}" if "r" in method.settings else method.title

    @property
    def ranks(self) -> dict[str, int]:
        """rank_pattern as a dict."""
        return dict(self.rank_pattern)


def _rank(path: str, rank: Any) -> Any:
    try:
        return inputs.as_type(rank, int)
    except ValueError as error:
        raise ValueError(f"The rank of {path} {error} (you entered {inputs.shown(rank)}).") from None


class DataConfig(Part):
    dataset: str = Field(
        "tiny",
        title="Data set",
        description="embedded set (tiny, small, ...), a folder, or a table (CSV, parquet, ...)",
    )
    clip_s: float | None = Field(
        None,
        gt=0.1,
        le=60,
        title="Clip length (s)",
        description="clip length in seconds; unset = the data set's own length",
    )
    shortest_s: float = Field(
        0.02,
        ge=0,
        le=60,
        title="Shortest recording (s)",
        description="recordings shorter than this are left out; others are padded to the clip length",
    )
    valid_fraction: float = Field(
        0.15, gt=0, lt=0.5, title="Valid share", description="share of clips for valid, if the data has no split"
    )
    test_fraction: float = Field(
        0.2, gt=0, lt=0.5, title="Test share", description="share of clips for test, if the data has no split"
    )
    split_seed: int = Field(
        0, ge=0, title="Split seed", description="seed of that split; each player (group) is in one split only"
    )
    table: str = Field(
        "",
        title="Table",
        description="table of the clips, as a path in the data set; none = go by folders; empty = the one that fits",
    )
    level: int | None = Field(
        None,
        ge=1,
        le=32,
        title="Class level",
        description="level of the folders that name the classes: 1 = the folders in the data set; unset = as they look",
    )
    path_column: str = Field("", title="Path column", description="column that names each file; empty = as it looks")
    label_column: str = Field("", title="Label column", description="column with the classes; empty = as it looks")
    split_column: str = Field("", title="Split column", description="column with the splits; none = make a split here")
    group_column: str = Field(
        "",
        title="Group column",
        description="column whose groups stay whole in a split (player, kit, ...); none = none",
    )
    strict: bool = Field(
        False,
        title="Strict",
        description="refuse to train if a file or label is invalid; off = leave such files out and train on the rest",
    )


class AugmentConfig(Part):
    time_mask: float = Field(
        0.08, ge=0, le=0.5, title="Time mask", description="SpecAugment: widest time mask, as a share of the clip"
    )
    mel_mask: float = Field(
        0.1, ge=0, le=0.5, title="Mel mask", description="SpecAugment: widest mel mask, as a share of the mel bins"
    )
    shift: float = Field(0.1, ge=0, le=0.5, title="Shift", description="random shift in time, as a share of the clip")
    gain_db: float = Field(6.0, ge=0, le=24, title="Gain (dB)", description="random gain, up to plus or minus this")


class TrainingConfig(Part):
    max_epochs: int = Field(
        10, ge=1, le=10_000, title="Epochs", description="number of epochs, unless early stopping ends the run sooner"
    )
    batch_size: int = Field(16, ge=1, le=4096, title="Batch size", description="clips per optimiser step")
    lr: float = Field(2e-3, gt=0, le=1, title="Learning rate", description="peak learning rate of the adapters (AdamW)")
    head_lr: float = Field(
        2e-3, gt=0, le=1, title="Head learning rate", description="peak learning rate of the head (AdamW)"
    )
    weight_decay: float = Field(0.01, ge=0, le=1, title="Weight decay", description="weight decay of AdamW")
    warmup: float = Field(
        0.1, ge=0, lt=1, title="Warm-up", description="share of all steps for warm-up, then cosine decay to zero"
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, title="Label smoothing", description="label smoothing of the cross-entropy loss"
    )
    grad_clip: float = Field(
        1.0, gt=0, le=1000, title="Gradient clip", description="gradients are clipped to this norm"
    )
    patience: int = Field(
        0,
        ge=0,
        le=1000,
        title="Patience (epochs)",
        description="stop after this many epochs without a better valid accuracy; 0 = never",
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32", title="Precision", description="float32, or bf16 autocast where it is fast"
    )

    def steps_per_epoch(self, clips: int) -> int:
        """Optimiser steps that so many train clips make; the last batch may be smaller."""
        return math.ceil(clips / self.batch_size)


class WandbConfig(Part):
    mode: Literal["disabled", "offline", "online"] = Field(
        "disabled", title="Weights & Biases", description="Weights & Biases logging: disabled, offline or online"
    )
    project: str = Field(
        "sousa-engine", min_length=1, max_length=128, title="W&B project", description="Weights & Biases project"
    )


class RunConfig(Part):
    """Everything a trainer needs, and nothing it may change."""

    name: str = Field(
        "", max_length=120, title="Name", description="shown in lists; empty = automatic, from backbone, data and seed"
    )
    model: ModelConfig = ModelConfig()  # pyright: ignore[reportCallIssue]
    lora: LoraConfig = LoraConfig()  # pyright: ignore[reportCallIssue]
    data: DataConfig = DataConfig()  # pyright: ignore[reportCallIssue]
    augment: AugmentConfig = AugmentConfig()  # pyright: ignore[reportCallIssue]
    training: TrainingConfig = TrainingConfig()  # pyright: ignore[reportCallIssue]
    wandb: WandbConfig = WandbConfig()  # pyright: ignore[reportCallIssue]
    seed: Annotated[
        int,
        Field(ge=0, le=2**31 - 1, title="Seed", description="seed of new weights, the order of clips and augmentation"),
    ] = 0
    device: Annotated[str, Field(title="Device", description="auto, cpu, mps or cuda:0, cuda:1, ...")] = "auto"

    @field_validator("device")
    @classmethod
    def _device_form(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda:\d+", device):
            raise ValueError(f"{device!r} is not a device. Use auto, cpu, mps or cuda:0.")
        return device

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        return one_line(name)

    @property
    def title(self) -> str:
        return self.name or f"{self.model.variant} · {self.dataset_name} · seed {self.seed}"

    @property
    def dataset_name(self) -> str:
        return re.split(r"[/\\]", self.data.dataset.rstrip("/\\"))[-1]


def build(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from nested plain values. Raises ConfigError that names the first field at fault."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        field, message = next(iter(_problems(error).items()))
        raise ConfigError(message, field=field) from None


def of_json(text: str) -> RunConfig:
    """A RunConfig from the JSON that was stored for a run. Raises ConfigError: another version may have written it."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        field, message = next(iter(_problems(error).items()))
        raise ConfigError(message, field=field) from None


def with_values(part: AnyPart, **values: Any) -> AnyPart:
    """A copy with other values for some of its fields, validated like all others. Raises ConfigError."""
    try:
        return type(part).model_validate({**dict(part), **values})
    except ValidationError as error:
        field, message = next(iter(_problems(error).items()))
        raise ConfigError(message, field=field) from None


def problems(values: Mapping[str, Any]) -> dict[str, str]:
    """Dotted field -> sentence, for every field at fault; empty when `values` make a valid RunConfig."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return _problems(error)
    return {}


def fields(part: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and FieldInfo of every leaf field, in order of declaration."""
    for name, info in part.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def field_label(dotted: str) -> str:
    """The name of the field on a form and in a sentence: "Learning rate" for training.lr."""
    return dict(fields())[dotted].title or dotted


def field_help(dotted: str) -> str:
    """The field's line of help, as a sentence; "" if it has none."""
    line = dict(fields())[dotted].description
    return f"{line[0].upper()}{line[1:]}." if line else ""


def field_options(dotted: str) -> tuple[str, ...]:
    """The values of a field that takes one of a few; empty if it takes others."""
    annotation = dict(fields())[dotted].annotation
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def takes_number(dotted: str) -> bool:
    """Whether the values of a field are numbers."""
    return inputs.is_number_type(dict(fields())[dotted].annotation)


def with_label(dotted: str, message: str) -> str:
    """A sentence about a field, as `problems` writes it, with the field's label in place of its dotted name."""
    return field_label(dotted) + message.removeprefix(dotted) if message.startswith(f"{dotted} ") else message


def read(dotted: str, value: Any) -> Any:
    """The value of one field, from text or as a file holds it, within the field's bounds; other fields have defaults.

    Raises ConfigError with a sentence about the field's label.
    """
    values: dict[str, Any] = {}
    *parents, leaf = dotted.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = value
    try:
        return value_of(build(values), dotted)
    except ConfigError as error:
        raise ConfigError(with_label(dotted, str(error)), field=dotted) from None


def differences(configs: list[RunConfig]) -> dict[str, list[Any]]:
    """Dotted field -> its value in each config, only where they differ. Targets are compared as paths."""
    flats = [_flat(config) for config in configs]
    return {name: [flat[name] for flat in flats] for name, _ in fields() if len({repr(f[name]) for f in flats}) > 1}


def value_of(config: RunConfig, dotted: str) -> Any:
    """`value_of(config, "training.lr")` is `config.training.lr`."""
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def _flat(config: RunConfig) -> dict[str, Any]:
    flat = {name: value_of(config, name) for name, _ in fields()}
    return flat | {"lora.targets": [target.path for target in config.lora.targets]}


def _problems(error: ValidationError) -> dict[str, str]:
    known = [name for name, _ in fields()]
    found: dict[str, str] = {}
    for item in error.errors():
        field = ".".join(str(p) for p in item["loc"])
        if item["type"] == "extra_forbidden":
            near = nearest(field, [*known, *RunConfig.model_fields])
            message = f"No field named {field!r}." + (f" Nearest: {', '.join(near)}." if near else "")
        else:
            message = sentence(field, item)
        found.setdefault(field, message)
    return found


def sentence(field: str, item: ErrorDetails) -> str:
    """An error of pydantic about a field, as a sentence that starts with its name."""
    if item["type"] == "missing":
        return f"{field} is missing."
    if item["type"] == "value_error":
        return str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
    entered = inputs.shown(item["input"])
    return f"{field} {_wanted(item['type'], item.get('ctx', {}), item['msg'])} (you entered {entered})."


def _wanted(kind: str, bounds: Mapping[str, Any], message: str) -> str:
    """The expectation of pydantic, as the predicate of a sentence about the field."""
    if kind.startswith("int_"):
        return "must be a whole number"
    if kind.startswith("float_") or kind == "finite_number":
        return "must be a number"
    if kind.startswith("bool_"):
        return "must be true or false"
    words = {
        _UNREADABLE: "{wanted}",
        "string_type": "must be text",
        "greater_than_equal": "must be at least {ge:,.12g}",
        "greater_than": "must be above {gt:,.12g}",
        "less_than_equal": "must be at most {le:,.12g}",
        "less_than": "must be below {lt:,.12g}",
        "literal_error": "must be {expected}",
        "string_too_short": "must not be empty",
        "too_short": "must not be empty",
        "string_too_long": "must have at most {max_length} characters",
    }
    return words[kind].format(**bounds) if kind in words else message.replace("Input should", "should")
