"""From a draft to a config, with names resolved and values checked, and back to YAML or words. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar, inputs
from sousa_engine.core.config import RunConfig
from sousa_engine.core.errors import (
    ConfigError,
    TargetError,
    WeightsError,
)
from sousa_engine.core.methods import METHODS, Method
from sousa_engine.data import manifest as manifests
from sousa_engine.targets import Outline, Resolution


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """config: complete and valid. notes: a sentence for each value that was not taken as written."""

    config: RunConfig
    outline: Outline
    resolution: Resolution
    notes: tuple[str, ...]


def prepare(draft: Mapping[str, Any]) -> Prepared:
    """Resolve a draft (grammar.parse, a form, a YAML file) into a RunConfig.

    Raises ConfigError (a field), UnknownNameError (a backbone) or TargetError (a target entry that matches nothing).
    """
    draft = {**draft, "model": {**(draft.get("model") or {})}, "lora": {**(draft.get("lora") or {})}}
    usual = config.build({})
    name = backbones.variant(str(draft["model"].get("variant", usual.model.variant))).name
    draft["model"]["variant"] = name
    _make_paths_absolute(draft)
    outline = targets.load_outline(name)
    method = METHODS.get(str(draft["lora"].get("method", "lora")), METHODS["lora"])
    written = draft["lora"].get("targets")
    if written is None:
        written = [targets.default_set(outline)] if method.takes_targets else []
    entries, notes = _for_method(outline, _entries(outline, written), method)
    try:
        resolution = targets.resolve_strict(outline, entries)
    except TargetError as error:
        sets = ", ".join(targets.named_sets(outline, method))
        raise TargetError(f"{error} Target sets of this backbone: {sets}.") from None
    notes += [f"{match.entry}: {match.note}" for match in resolution.matches if match.note]
    paths = [path for path in resolution.paths if not outline.in_head(path)]
    if len(paths) < len(resolution.paths):
        policy = draft["lora"].get("head", usual.lora.head)
        notes.append(f"{outline.head_path}: controlled by lora.head={policy}, not by the targets.")
    draft["lora"]["targets"] = [target.model_dump() for target in outline.targets(paths)]
    if draft["lora"].get("rank_pattern"):
        draft["lora"]["rank_pattern"] = _ranks(outline, draft["lora"]["rank_pattern"], paths)
    if not draft["lora"].get("target_set"):
        draft["lora"]["target_set"] = targets.set_name(outline, paths)
    return Prepared(config=config.build(draft), outline=outline, resolution=resolution, notes=tuple(notes))


def to_yaml(run_config: RunConfig) -> str:
    """The complete config as YAML; `python -m sousa_engine train --config FILE` reads it back to an equal config."""
    values = run_config.model_dump(mode="json")
    values["lora"]["targets"] = [target.path for target in run_config.lora.targets]
    values["lora"]["rank_pattern"] = run_config.lora.ranks
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def to_command(run_config: RunConfig) -> str:
    """The shell command that queues an equal run. It names only what differs from the defaults and presets."""
    return "python -m sousa_engine train " + " ".join(shlex.quote(word) for word in _words(run_config))


def to_draft(run_config: RunConfig) -> grammar.Draft:
    """The draft that `prepare` reads back to an equal config."""
    return grammar.parse(_words(run_config))


def _words(run_config: RunConfig) -> list[str]:
    words = [f"model={run_config.model.variant}", f"data={run_config.data.dataset}"]
    base = prepare(grammar.parse(words)).config
    outline = targets.load_outline(run_config.model.variant)
    for dotted, (_, value) in config.differences([base, run_config]).items():
        if dotted == "lora.target_set" and value in (*targets.recommended_sets(outline), ""):
            continue  # follows from the targets
        if dotted == "lora.targets":
            paths = [target.path for target in run_config.lora.targets]
            value = inputs.list_text(targets.short_names(outline, paths))
        elif dotted == "lora.rank_pattern":
            value = "{" + ", ".join(f"{path}: {rank}" for path, rank in run_config.lora.rank_pattern) + "}"
        elif value is None:
            value = "null"
        words.append(f"{dotted}={value}")
    return words


def changed(run_config: RunConfig, changes: Sequence[str]) -> grammar.Draft:
    """The draft of a config with some fields changed, in words such as "lora.r=16"."""
    asked = grammar.parse(changes)
    draft = grammar.parse([*_words(run_config), *changes])
    if "targets" in asked.get("lora", {}) and "target_set" not in asked["lora"]:
        draft["lora"].pop("target_set", None)  # it names the targets before
    return draft


def _make_paths_absolute(draft: dict[str, Any]) -> None:
    """Make the data-set and weights paths absolute: the trainer has another working directory."""
    data = {**(draft.get("data") or {})}
    if "dataset" in data:
        draft["data"] = {**data, "dataset": manifests.absolute(str(data["dataset"]))}
    weights = str(draft["model"].get("weights", "pretrained")).strip()
    draft["model"]["weights"] = weights
    if weights not in ("pretrained", "random"):
        path = inputs.typed_path(weights, WeightsError)
        draft["model"]["weights"] = str(path.resolve()) if path.exists() else weights


def _entries(outline: Outline, written: Any) -> list[str]:
    """Targets as written: names, or {path, kind, shape} of an earlier run, which must not have changed."""
    if isinstance(written, list | tuple) and any(isinstance(item, Mapping) for item in written):
        for item in written:
            today = outline.targets([str(item["path"])])[0]
            if (today.kind, list(today.shape)) != (item["kind"], list(item["shape"])):
                raise TargetError(
                    f"{today.path!r} is now {today.kind} {today.shape}, but the config says {item['kind']} "
                    f"{tuple(item['shape'])}. Select it again in the tree of {outline.variant}."
                )
        return [str(item["path"]) for item in written]
    return grammar.entries(written)


def _for_method(outline: Outline, entries: list[str], method: Method) -> tuple[list[str], list[str]]:
    """Entries with target sets expanded to the modules that the method can adapt, and a note on those left out."""
    found, notes = [], []
    complete, able = targets.named_sets(outline), targets.named_sets(outline, method)
    for entry in entries:
        if entry not in complete:
            found.append(entry)
            continue
        taken = able.get(entry, ())
        if left := [path for path in complete[entry] if path not in taken]:
            reason = method.reason(outline.node(left[0]).kind)
            notes.append(f"{entry}: {len(left)} of its {len(complete[entry])} modules are skipped. {reason}")
        found += taken
    return found, notes


def _ranks(outline: Outline, written: Any, paths: Sequence[str]) -> dict[str, int]:
    """rank_pattern with its names resolved among the targets, by PEFT's own rule or by old names."""
    pairs = list(written.items()) if isinstance(written, Mapping) else written
    are_pairs = isinstance(pairs, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs)
    if not are_pairs:
        raise ConfigError(
            f"lora.rank_pattern = {written!r} does not map modules to ranks. Example: '{{q_proj: 4, mlp.fc1: 16}}'.",
            field="lora.rank_pattern",
        )
    found: dict[str, int] = {}
    for entry, rank in pairs:
        named = [path for path in targets.resolve_sets(outline, [str(entry)]).paths if path in set(paths)]
        if not named:
            raise TargetError(
                f"lora.rank_pattern: {entry} is a module of {outline.variant}, but not a target of this run."
            )
        for path in named:
            found[path] = rank
    return found
