"""From a draft to a config, with names resolved and values checked, and back to YAML or words. No torch."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sousa_engine import backbones, targets
from sousa_engine.core import config, grammar, inputs
from sousa_engine.core.config import RunConfig, TargetModule
from sousa_engine.core.errors import ConfigError, TargetError
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
    """Resolve settings (grammar.parse, a form, a YAML file: see grammar.read) into a RunConfig.

    Fields that they leave out have the defaults of the backbone. Raises ConfigError (a field), UnknownNameError (a
    backbone, a preset) or TargetError (a target entry that matches nothing).
    """
    asked, usual = grammar.read(draft), config.build({})
    usual_of_it = backbones.defaults(asked.get("model", {}).get("variant", usual.model.variant))
    name = usual_of_it["model"]["variant"]
    draft = {"lora": {}, **grammar.laid_over(usual_of_it, asked)}
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
        draft["lora"]["rank_pattern"], overlaps = ranks_of(outline, draft["lora"]["rank_pattern"], paths)
        notes += overlaps
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
            value = (
                "[" + ",".join(targets.short_names(outline, [target.path for target in run_config.lora.targets])) + "]"
            )
        elif dotted == "lora.rank_pattern":
            value = "{" + ", ".join(f"{path}: {rank}" for path, rank in run_config.lora.rank_pattern) + "}"
        elif value is None:
            value = "null"
        words.append(f"{dotted}={value}")
    return words


def changed(run_config: RunConfig, changes: Sequence[str]) -> grammar.Draft:
    """The draft of a config with some fields changed, in words such as "lora.r=16"."""
    return grammar.laid_over(to_draft(run_config), grammar.parse(changes))


def _make_paths_absolute(draft: dict[str, Any]) -> None:
    """Make the data-set and weights paths absolute: the trainer has another working directory."""
    data = {**(draft.get("data") or {})}
    if "dataset" in data:
        draft["data"] = {**data, "dataset": manifests.absolute(str(data["dataset"]))}
    weights = str(draft["model"].get("weights", "pretrained"))
    if weights not in ("pretrained", "random") and Path(weights).expanduser().exists():
        draft["model"]["weights"] = str(Path(weights).expanduser().resolve())


def _entries(outline: Outline, written: Any) -> list[str]:
    """Targets as written: names, or {path, kind, shape} of an earlier run, which must not have changed."""
    if not (isinstance(written, list | tuple) and any(isinstance(item, Mapping) for item in written)):
        return grammar.entries(written)
    for item in written:
        try:
            then = TargetModule.model_validate(item)
        except ValidationError:
            raise ConfigError(
                f"lora.targets: {inputs.shown(item)} is not a target. Write the name of a module, or all of its path, "
                "kind and shape.",
                field="lora.targets",
            ) from None
        today = outline.targets([then.path])[0]
        if today != then:
            raise TargetError(
                f"{today.path!r} is now {today.kind} {today.shape}, but the config says {then.kind} {then.shape}. "
                f"Select it again in the tree of {outline.variant}."
            )
    return [str(item["path"]) for item in written]


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


def ranks_of(outline: Outline, written: Any, paths: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Full path -> rank from rank_pattern, whose keys name modules as targets do, and a note on keys that overlap.

    The most specific key wins: the full path, then the longest end of it, then a pattern or the name of a set. Between
    equals the first one wins, as in PEFT. Raises ConfigError, TargetError.
    """
    pairs = list(written.items()) if isinstance(written, Mapping) else written
    are_pairs = isinstance(pairs, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs)
    if not are_pairs:
        raise ConfigError(
            f"lora.rank_pattern = {inputs.shown(written)} does not map modules to ranks. "
            "Example: '{q_proj: 4, mlp.fc1: 16}'.",
            field="lora.rank_pattern",
        )
    keys: dict[str, list[tuple[str, Any]]] = {}
    for key, rank in pairs:
        named = [path for path in _named(outline, str(key)) if path in set(paths)]
        if not named:
            raise TargetError(
                f"lora.rank_pattern: {key} is a module of {outline.variant}, but not a target of this run."
            )
        for path in named:
            keys.setdefault(path, []).append((str(key), rank))
    found: dict[str, int] = {}
    overlaps: dict[str, list[str]] = {}
    for path, hits in keys.items():
        key, found[path] = max(hits, key=lambda hit: _closeness(outline, hit[0], path))
        for other, rank in hits:
            if rank != found[path]:
                is_close = _closeness(outline, other, path) < _closeness(outline, key, path)
                why = "it is more specific" if is_close else "it comes first"
                note = f"both {key} ({found[path]}) and {other} ({rank}). The rank of {key} is used: {why}."
                overlaps.setdefault(note, []).append(path)
    notes = [
        f"lora.rank_pattern: {'1 module matches' if len(at) == 1 else f'{len(at)} modules match'} {note}"
        for note, at in overlaps.items()
    ]
    return found, notes


def _named(outline: Outline, key: str) -> tuple[str, ...]:
    """The modules that a key of rank_pattern names. PEFT also matches a regular expression with the end of a path."""
    found = targets.resolve(outline, targets.expand_sets(outline, [key]))
    if found.unmatched:
        by_end = targets.resolve(outline, [rf"(?:.*\.)?(?:{key})"])
        found = targets.resolve_strict(outline, [key]) if by_end.unmatched else by_end
    return found.paths


def _closeness(outline: Outline, key: str, path: str) -> float:
    """How much of the path a key spells out: all of it, the parts at its end, or none, as a pattern does."""
    if key == path:
        return math.inf
    ends = any(f".{name}".endswith(f".{key}") for name in (path, outline.node(path).old_path))
    return 1 + key.count(".") if ends else 0
