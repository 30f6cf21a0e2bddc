"""The grammar of settings: `group=name` picks a preset, `a.b=value` sets a field; a file says the same in YAML.

The result is a draft: nested plain values in the shape of RunConfig, in which `model.variant` may be any name of a
backbone and `lora.targets` may contain names (`q_proj`, `attention+mlp`); runs.prepare resolves both.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sousa_engine.core import config, inputs
from sousa_engine.core.errors import ConfigError, nearest, unknown

PRESET_GROUPS = ("model", "lora", "training", "augment")
GROUPS = (*PRESET_GROUPS, "data")
NAMED = {"model": "model.variant", "data": "data.dataset"}  # groups whose name is itself the value of a field
PRESETS = Path(__file__).with_name("presets")
Draft = dict[str, Any]

# Field names of earlier config files, and their present names.
_SYNONYMS = {"peft_target_modules": "lora.targets", "target_modules": "lora.targets", "lora.rank": "lora.r"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def parse(words: Iterable[str]) -> Draft:
    """`["model=ast-mini", "training.max_epochs=10"]` -> a draft. Presets are applied first, then fields, in order.

    Raises ConfigError for a word without `=`, for an unknown field (with the nearest names) and for a value that is not
    valid YAML; UnknownNameError for an unknown preset.
    """
    draft: Draft = {}
    fields: list[tuple[str, Any]] = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip().lstrip("+")
        if not equals or not key:
            raise ConfigError(f"{word!r} is not of the form group=name or field=value, such as training.max_epochs=10.")
        key = _SYNONYMS.get(key, key)
        if key in GROUPS and not text.strip():
            raise ConfigError(f"{key}= has no value. Write {key}=NAME.", field=key)
        if key in NAMED:
            fields.append((NAMED[key], text))
        elif key in PRESET_GROUPS:
            merge(draft, preset(key, text))
        elif key in _known():
            fields.append((key, text if _is_text(key) else value(text, key)))
        else:
            near = nearest(key, [*GROUPS, *_known()])
            hint = (
                f" Nearest: {', '.join(near)}." if near else " `python -m sousa_engine train --help` lists all fields."
            )
            raise ConfigError(f"No field named {key!r}.{hint}", field=key)
    for key, what in fields:
        set_field(draft, key, what)
    return draft


def read(values: Mapping[Any, Any]) -> Draft:
    """Settings as a file or a caller nests them, as a draft: the language of `parse` in another form.

    A group is a name (`lora: attention`) or a mapping of its fields; a field may be written with dots. Presets are
    applied first. A draft is returned unchanged. Raises ConfigError that names the field for every other form;
    UnknownNameError for an unknown preset.
    """
    draft: Draft = {}
    fields: dict[str, Any] = {}
    for key, what in _leaves(values):
        if key in fields:
            raise ConfigError(f"{key} is given twice, in two spellings.", field=key)
        fields[key] = what
    for key in PRESET_GROUPS:
        if key in fields:
            merge(draft, preset(key, fields.pop(key)))
    for key, what in fields.items():
        set_field(draft, key, copy.deepcopy(what))
    return draft


def laid_over(draft: Draft, asked: Mapping[str, Any]) -> Draft:
    """A draft with the fields of `asked` in place of its own. New targets drop the name of the target set before."""
    made = copy.deepcopy(draft)
    if "targets" in asked.get("lora", {}):
        made.get("lora", {}).pop("target_set", None)
    merge(made, asked)
    return made


def words(draft: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The words from which `parse` builds this draft: `["training.max_epochs=10"]`."""
    found: list[str] = []
    for key, what in draft.items():
        dotted = f"{prefix}{key}"
        if dotted in _known() and _is_text(dotted):
            found.append(f"{dotted}={what}")
        elif dotted in _known() or not isinstance(what, Mapping):
            found.append(f"{dotted}={written(what)}")
        else:
            found += words(what, f"{dotted}.")
    return found


def preset(group: str, name: str) -> Draft:
    """The values of presets/<group>/<name>.yaml. Raises UnknownNameError."""
    known = _preset_files(group)
    if name in known:
        return copy.deepcopy({key: what for key, what in known[name].items() if key != "help"})
    raise unknown(f"{group} preset", name, known)


def presets(group: str) -> dict[str, str]:
    """Preset name -> its help text."""
    return {name: values.get("help", "") for name, values in _preset_files(group).items()}


def number(text: str, what: str) -> float:
    """A number as people type it: 0.002, 2e-3. Raises ConfigError with a sentence about `what`."""
    try:
        found = value(text) if text.strip() else None
    except ConfigError:
        found = None
    if isinstance(found, int | float) and not isinstance(found, bool):
        return float(found)
    raise ConfigError(f"{what} must be a number such as 0.002 or 2e-3 (you entered {text!r}).")


def value(text: str, key: str = "value") -> Any:
    """A YAML scalar or list. `5e-4` is a number here, although YAML 1.1 reads it as text."""
    if is_number(text):
        return float(text)
    try:
        return inputs.load_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key} = {text!r} is not a valid value. Quote lists: '[a, b]'.", field=key) from None


def written(what: Any) -> str:
    """The text from which `value` reads this value: 0.001, null, ast-mini, [q_proj, v_proj]."""
    if isinstance(what, str):
        return what if _reads_as_itself(what) else json.dumps(what)
    if isinstance(what, float):
        return repr(what)
    return yaml.safe_dump(what, default_flow_style=True, width=math.inf, sort_keys=False).removesuffix("...\n").strip()


def is_number(text: str) -> bool:
    """Whether text is a number that YAML 1.1 reads as text, such as 5e-4."""
    return bool(_NUMBER.fullmatch(text.strip()))


def set_field(draft: Draft, dotted: str, what: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        draft = draft.setdefault(parent, {})
    draft[leaf] = what


def entries(text_or_list: Any) -> list[str]:
    """Target entries in any pasted form: a list, "query,key", YAML, or a complete `peft_target_modules:` block."""
    if isinstance(text_or_list, str):
        text = text_or_list.strip()
        try:
            loaded = inputs.load_yaml(text)
        except yaml.YAMLError:
            loaded = text
        if isinstance(loaded, Mapping):
            loaded = _only_list(loaded)
        if loaded is None:
            return []
        if isinstance(loaded, str):
            loaded = [part for part in re.split(r"[,\s]+", loaded) if part]
        text_or_list = loaded
    if not isinstance(text_or_list, list | tuple):
        raise ConfigError(f"{text_or_list!r} is not a list of target names.", field="lora.targets")
    return [str(entry).strip().strip("\"'") for entry in text_or_list if str(entry).strip()]


def _reads_as_itself(text: str) -> bool:
    try:
        return value(text) == text
    except ConfigError:
        return False


@cache
def _preset_files(group: str) -> dict[str, Draft]:
    """Cached, because planning a sweep reads a preset for each setting."""
    return {path.stem: yaml.safe_load(path.read_text()) or {} for path in sorted((PRESETS / group).glob("*.yaml"))}


def _only_list(block: Mapping[str, Any]) -> Any:
    for key in ("peft_target_modules", "target_modules", "targets"):
        if key in block:
            return block[key]
    inner = [v for v in block.values() if isinstance(v, Mapping)]
    if inner:
        return _only_list(inner[0])
    raise ConfigError("The pasted text contains no peft_target_modules: list.", field="lora.targets")


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted field, or group, -> its value. Raises ConfigError for a key that is neither, and for a wrong form."""
    for key, what in values.items():
        dotted = f"{prefix}{key}"
        dotted = _SYNONYMS.get(dotted, dotted)
        if dotted in _known():
            yield dotted, _text(dotted, what) if _is_text(dotted) else what
        elif dotted in GROUPS and isinstance(what, str) and what.strip():
            yield NAMED.get(dotted, dotted), what
        elif dotted in _parts() and isinstance(what, Mapping):
            yield from _leaves(what, f"{dotted}.")
        elif dotted in _parts():
            example = next(name for name in _known() if name.startswith(f"{dotted}."))
            forms = f"{dotted}: NAME or {dotted}: {{...}}" if dotted in GROUPS else f"{dotted}: {{...}}"
            raise ConfigError(
                f"{dotted} must be a {'name or a ' if dotted in GROUPS else ''}mapping of fields such as {example}: "
                f"write {forms} (you entered {inputs.shown(what)}).",
                field=dotted,
            )
        else:
            near = nearest(dotted, [*GROUPS, *_parts(), *_known()])
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise ConfigError(f"No field named {dotted!r}.{hint}", field=dotted)


def _text(dotted: str, what: Any) -> str:
    if isinstance(what, bool | int | float):
        return str(what).lower() if isinstance(what, bool) else repr(what)
    if not isinstance(what, str):
        raise ConfigError(f"{dotted} must be text (you entered {inputs.shown(what)}).", field=dotted)
    return what


@cache
def _known() -> tuple[str, ...]:
    return tuple(name for name, _ in config.fields())


@cache
def _parts() -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.partition(".")[0] for name in _known() if "." in name))


@cache
def _text_fields() -> frozenset[str]:
    return frozenset(name for name, info in config.fields() if info.annotation is str)


def _is_text(key: str) -> bool:
    """Whether the value of a field is used as typed: a name `007` or a path is not a number."""
    return key in _text_fields()


def merge(draft: Draft, values: Mapping[str, Any], prefix: str = "") -> None:
    """Override `draft` with `values`, field by field. A field whose value is a mapping is replaced as a whole."""
    for key, what in values.items():
        if isinstance(what, Mapping) and f"{prefix}{key}" not in _known():
            merge(draft.setdefault(key, {}), what, f"{prefix}{key}.")
        else:
            draft[key] = what
