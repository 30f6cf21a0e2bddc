"""Named sets of targets: those recommended for a backbone, and their names. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from sousa_engine.core import grammar
from sousa_engine.core.methods import Method
from sousa_engine.targets.match import Resolution, resolve_strict, to_yaml
from sousa_engine.targets.outline import Outline

USUAL_SETS = ("core", "default", "all-linear")
"""Names of sets that every backbone knows."""


def resolve_sets(outline: Outline, entries: list[str]) -> Resolution:
    """`resolve_strict`, where an entry may also be the name of a recommended set."""
    return resolve_strict(outline, expand_sets(outline, entries))


def expand_sets(outline: Outline, entries: list[str]) -> list[str]:
    """Entries with the names of recommended sets replaced by their paths."""
    sets = named_sets(outline)
    return [path for entry in entries for path in sets.get(entry, (entry,))]


def named_sets(outline: Outline, method: Method | None = None) -> dict[str, tuple[str, ...]]:
    """The recommended sets, and two names that every backbone knows.

    core: the first one (attention, or squeeze-excitation if there is none); default: for runs that name no targets.
    """
    sets = recommended_sets(outline, method)
    return sets | {"core": next(iter(sets.values()), ()), "default": sets.get(default_set(outline), ())}


def recommended_sets(outline: Outline, method: Method | None = None) -> dict[str, tuple[str, ...]]:
    """Name -> full paths in tree order, by the roles of the modules; the head is never included.

    Only sets with members, and attention+mlp only if there are both. method: only modules that it can adapt.
    """
    body = [node for node in outline.nodes if node.adaptable and not outline.in_head(node.path)]
    groups = {node.role.partition(".")[0] for node in body}
    wanted = {
        "attention": {"attention"},
        "attention+mlp": {"attention", "mlp"} if {"attention", "mlp"} <= groups else set(),
        "se": {"se"},
        "se+pointwise": {"se", "pointwise"} if "pointwise" in groups else set(),
    }
    sets = {name: [n for n in body if n.role.partition(".")[0] in roles] for name, roles in wanted.items()}
    sets["all-linear"] = [node for node in body if node.kind == "Linear"]
    if method is not None:
        sets = {name: [node for node in nodes if not method.reason(node.kind)] for name, nodes in sets.items()}
    return {name: tuple(node.path for node in nodes) for name, nodes in sets.items() if nodes}


def default_set(outline: Outline) -> str:
    """The recommended set for a run that names no targets."""
    sets = recommended_sets(outline)
    return next(name for name in ("attention+mlp", "attention", "se+pointwise", *sets) if name in sets)


def short_names(outline: Outline, paths: Sequence[str]) -> list[str]:
    """The recommended set, else the shortest names, that `resolve_sets` turns into exactly these modules."""
    name = set_name(outline, paths)
    if name or not paths:
        return [name] if name else []
    names = grammar.entries(to_yaml(outline, paths))
    return names if set(resolve_sets(outline, names).paths) == set(paths) else list(paths)


def set_name(outline: Outline, paths: Sequence[str]) -> str:
    """The first recommended set of exactly these modules, or ""."""
    named = (name for name, members in recommended_sets(outline).items() if set(members) == set(paths))
    return next(named, "")
