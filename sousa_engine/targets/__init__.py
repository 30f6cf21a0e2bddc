"""Module picking: the outline of a network, the modules that names match in it, what a selection costs. No torch."""

from sousa_engine.targets.count import Counts, count
from sousa_engine.targets.match import EntryMatch, Resolution, grep, resolve, resolve_strict, to_yaml
from sousa_engine.targets.outline import OUTLINES, ModuleNode, Outline, load_outline
from sousa_engine.targets.sets import (
    default_set,
    expand_sets,
    named_sets,
    recommended_sets,
    resolve_sets,
    set_name,
    short_names,
)

__all__ = [
    "OUTLINES",
    "Counts",
    "EntryMatch",
    "ModuleNode",
    "Outline",
    "Resolution",
    "count",
    "default_set",
    "expand_sets",
    "grep",
    "load_outline",
    "named_sets",
    "recommended_sets",
    "resolve",
    "resolve_sets",
    "resolve_strict",
    "set_name",
    "short_names",
    "to_yaml",
]
