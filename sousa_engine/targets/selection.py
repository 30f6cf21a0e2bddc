"""A selection of modules: whether a method and a rank fit it, and how it is written down. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sousa_engine.core import grammar, inputs
from sousa_engine.core.errors import TargetError
from sousa_engine.core.methods import Method
from sousa_engine.targets.match import Resolution, resolve_strict, to_yaml
from sousa_engine.targets.outline import Outline

_NAMES = ("peft_target_modules", "target_modules", "targets")
_OTHERS = (  # settings of PEFT's configs that change a run
    *("lora_alpha", "alpha", "alpha_pattern", "lora_dropout", "dropout", "use_dora", "use_rslora", "bias"),
    *("modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
)


@dataclass(frozen=True, kw_only=True)
class PastedSettings:
    """What a pasted block, such as an adapter_config.json, sets besides the names of its modules.

    r: the general rank, if it has one. ranks: its rank_pattern. others: setting -> value, for settings that a selection
    of modules does not have.
    """

    r: int | None = None
    ranks: Mapping[Any, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)


def pasted_settings(text: str) -> PastedSettings:
    """The settings next to a pasted list of targets; empty ones if the text is a list alone."""
    try:
        block = _with_names(inputs.load_yaml(text))
    except yaml.YAMLError:
        block = {}
    r, ranks = block.get("r", block.get("rank")), block.get("rank_pattern")
    return PastedSettings(
        r=r if isinstance(r, int) and not isinstance(r, bool) else None,
        ranks=ranks if isinstance(ranks, Mapping) else {},
        others={name: block[name] for name in _OTHERS if _says_something(name, block.get(name))},
    )


def _says_something(name: str, value: Any) -> bool:
    return bool(value) and value != "none" and not (name == "init_lora_weights" and value is True)


def _with_names(block: Any) -> Mapping[Any, Any]:
    """The mapping that holds the list of targets, however deep it is nested; {} if there is none."""
    if not isinstance(block, Mapping):
        return {}
    if any(name in block for name in _NAMES):
        return block
    return next((found for inner in block.values() if (found := _with_names(inner))), {})


def not_adaptable(outline: Outline, method: Method) -> dict[str, str]:
    """Path -> why `method` cannot adapt this module, for modules that other methods can adapt."""
    return {node.path: why for node in outline.nodes if node.adaptable and (why := method.reason(node.kind))}


def highest_ranks(outline: Outline, paths: Sequence[str], ranks: Mapping[str, int], r: int) -> dict[str, int]:
    """Path -> the highest possible rank, for modules whose rank (`ranks`, else r) is above their width."""
    widths = {target.path: target.width for target in outline.targets(paths)}
    return {path: width for path, width in widths.items() if width < ranks.get(path, r)}


def has_all(outline: Outline, paths: Sequence[str]) -> bool:
    """Whether all these paths are modules of the outline that can be adapted."""
    return set(paths) <= {node.path for node in outline.nodes if node.adaptable}


def shared_names(outlines: Sequence[Outline], paths: Sequence[str]) -> list[str]:
    """Short names that mean exactly these modules in each of the outlines, else the paths."""
    names = grammar.entries(to_yaml(outlines[0], paths))
    try:
        same = all(set(resolve_strict(one, names).paths) == set(paths) for one in outlines)
    except TargetError:
        same = False
    return names if same else list(paths)


def current_names(entries: Sequence[str], resolution: Resolution) -> list[str]:
    """The entries with old names replaced by the current ones, each name once."""
    found = {match.entry: match for match in resolution.matches}
    names: list[str] = []
    for entry in entries:
        match = found.get(entry)
        if match is None or match.via != "old name":
            names.append(entry)
        if match is not None:
            names += match.today
    return list(dict.fromkeys(names))


def names_yaml(names: Sequence[str]) -> str:
    """Target names as a block that `grammar.entries` reads."""
    return "peft_target_modules:\n" + "".join(f"- {name}\n" for name in names)


def selection_yaml(outline: Outline, paths: Sequence[str], ranks: Mapping[str, int]) -> str:
    """The shortest names that mean exactly these modules, and their separate ranks, as YAML."""
    block = "".join(f"  {path}: {rank}\n" for path, rank in ranks.items())
    return to_yaml(outline, paths) + (f"rank_pattern:\n{block}" if block else "")
