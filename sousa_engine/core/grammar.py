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
_NOTHING = ("", "null", "~")
_BLOCK_KEYS = ("peft_target_modules", "target_modules", "targets")
_MOST_LETTERS = 100_000  # of a list of targets
_ITEMS = r"""\[.*?\]|\(.*?\)|\{.*?\}|"[^"]*"|'[^']*'"""
_CODE = re.compile(  # of `LoraConfig(target_modules=[...])`, or PEFT's own error
    rf"target_modules\s*=\s*({_ITEMS})(?=\s*(?:[,)]|$))|Target modules ({_ITEMS}) not found", re.DOTALL
)


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
            fields.append((key, value(text, key)))
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
        if dotted in _known() and isinstance(what, str):
            found.append(f"{dotted}={what}")
        elif dotted == "lora.targets" and isinstance(what, list | tuple):
            found.append(f"{dotted}={inputs.list_text(map(str, what))}")
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


def value(text: str, key: str = "") -> Any:
    """What a text means for the field `key`: text and choices as typed, else a number, true or false, or a list.

    Without a field, or for ranks, it is YAML. Raises ConfigError that names the field.
    """
    annotation = _annotation(key)
    if key == "lora.targets":
        text = text.strip()
        if text in _NOTHING:
            return None
        return entries(text) if text[0] in "[({" else text
    if annotation is str:
        return text
    if config.field_options(key) if annotation else ():
        return text.strip()
    if annotation is bool:
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    if annotation is not None and key != "lora.rank_pattern":
        return typed(text, key)
    try:
        return inputs.load_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"{key or 'value'} = {inputs.shown(text)} is not a valid value. Quote lists: '[a, b]'.", field=key or None
        ) from None


def typed(what: Any, key: str) -> Any:
    """A value in the type of its field: text becomes a number where the field takes one. Raises ConfigError."""
    try:
        return inputs.as_type(what, _annotation(key))
    except ValueError as error:
        raise ConfigError(f"{key} {error} (you entered {inputs.shown(what)}).", field=key) from None


def typed_draft(draft: Mapping[str, Any], prefix: str = "") -> Draft:
    """A draft with each value in the type of its field. Raises ConfigError."""
    return {
        key: typed_draft(what, f"{prefix}{key}.")
        if isinstance(what, Mapping) and f"{prefix}{key}" not in _known()
        else typed(what, f"{prefix}{key}")
        for key, what in draft.items()
    }


def written(what: Any) -> str:
    """The text from which `value` reads this value: 0.001, null, ast-mini, [q_proj, v_proj]."""
    if isinstance(what, str):
        return what if _reads_as_itself(what) else json.dumps(what)
    if isinstance(what, float):
        return repr(what)
    return yaml.safe_dump(what, default_flow_style=True, width=math.inf, sort_keys=False).removesuffix("...\n").strip()


def set_field(draft: Draft, dotted: str, what: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        draft = draft.setdefault(parent, {})
    draft[leaf] = what


def entries(text_or_list: Any) -> list[str]:
    """Target entries in any pasted form: a list of Python, JSON or YAML, "query,key", PEFT's set {'key', 'query'} or
    its error, or a complete `peft_target_modules:` block. Raises ConfigError."""
    if isinstance(text_or_list, str):
        return _pasted(text_or_list)
    if isinstance(text_or_list, Mapping) and _is_set(text_or_list):
        text_or_list = list(text_or_list)
    if not isinstance(text_or_list, list | tuple | set) or any(
        isinstance(entry, Mapping | list) for entry in text_or_list
    ):
        raise ConfigError(f"{inputs.shown(text_or_list)} is not a list of target names.", field="lora.targets")
    found = [inputs.unquoted(str(entry).strip()) for entry in text_or_list if entry is not None]
    return [entry for entry in found if entry]


def entry_or_list(text: str) -> str | list[str]:
    """`q_proj` as a name, `q_proj,v_proj` as a list of names. Raises ConfigError."""
    found = entries(text)
    return found[0] if len(found) == 1 else found


def _is_set(block: Mapping[Any, Any]) -> bool:
    """Whether YAML read `{q_proj, v_proj}`."""
    return all(what is None for what in block.values())


def _pasted(text: str) -> list[str]:
    if len(text) > _MOST_LETTERS:
        raise ConfigError(
            f"A list of targets has at most {_MOST_LETTERS:,} characters, not {len(text):,}.", field="lora.targets"
        )
    if found := _CODE.search(text):
        text = found[1] or found[2]
    text = text.strip()
    if text[:1] == "{" or "\n" in text or ":" in text or text[:2] == "- ":
        try:
            block = inputs.load_yaml(text)
        except yaml.YAMLError:
            block = None
        if isinstance(block, Mapping) and not (text[0] == "{" and _is_set(block)):
            return entries(_only_list(block) or [])
        if isinstance(block, list) and text[0] == "-":
            return entries(block)
    return inputs.listed(text, ", \t\r\n")


def _reads_as_itself(text: str) -> bool:
    try:
        return value(text) == text
    except ConfigError:
        return False


@cache
def _preset_files(group: str) -> dict[str, Draft]:
    """Cached, because planning a sweep reads a preset for each setting."""
    return {
        path.stem: typed_draft(inputs.load_yaml(path.read_text()) or {})
        for path in sorted((PRESETS / group).glob("*.yaml"))
    }


def _only_list(block: Mapping[str, Any]) -> Any:
    for key in _BLOCK_KEYS:
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
            yield dotted, _text(dotted, what) if _annotation(dotted) is str else what
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
def _annotation(key: str) -> Any:
    """The type of a field; None if there is no field of this name."""
    found = dict(config.fields()).get(key)
    return None if found is None else found.annotation


def merge(draft: Draft, values: Mapping[str, Any], prefix: str = "") -> None:
    """Override `draft` with `values`, field by field. A field whose value is a mapping is replaced as a whole."""
    for key, what in values.items():
        if isinstance(what, Mapping) and f"{prefix}{key}" not in _known():
            merge(draft.setdefault(key, {}), what, f"{prefix}{key}.")
        else:
            draft[key] = what
