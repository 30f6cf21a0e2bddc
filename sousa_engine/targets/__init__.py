"""Module picking: the outline of a network, the modules that names match in it, what a selection costs. No torch."""

from sousa_engine.targets.count import Counts, count
from sousa_engine.targets.match import EntryMatch, Resolution, grep, resolve, resolve_strict, to_yaml
from sousa_engine.targets.outline import OUTLINES, ModuleNode, Outline, load_outline
from sousa_engine.targets.selection import (
    PastedSettings,
    current_names,
    has_all,
    highest_ranks,
    names_yaml,
    not_adaptable,
    pasted_settings,
    selection_yaml,
    shared_names,
)
from sousa_engine.targets.sets import (
    USUAL_SETS,
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
    "USUAL_SETS",
    "Counts",
    "EntryMatch",
    "ModuleNode",
    "Outline",
    "PastedSettings",
    "Resolution",
    "count",
    "current_names",
    "default_set",
    "expand_sets",
    "grep",
    "has_all",
    "highest_ranks",
    "load_outline",
    "named_sets",
    "names_yaml",
    "not_adaptable",
    "pasted_settings",
    "recommended_sets",
    "resolve",
    "resolve_sets",
    "resolve_strict",
    "selection_yaml",
    "set_name",
    "shared_names",
    "short_names",
    "to_yaml",
]
