"""A selection of modules: whether a method and a rank fit it, and how it is written down. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sousa_engine.core import grammar
from sousa_engine.core.errors import TargetError
from sousa_engine.core.methods import Method
from sousa_engine.targets.match import Resolution, resolve_strict, to_yaml
from sousa_engine.targets.outline import Outline


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
