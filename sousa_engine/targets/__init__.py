"""Module picking: the outline of a network, what a list of names matches in it, what a choice costs. No torch."""

from sousa_engine.targets.outline import (
    OUTLINES,
    Counts,
    EntryMatch,
    ModuleNode,
    Outline,
    Resolution,
    count,
    grep,
    load_outline,
    resolve,
    resolve_strict,
    to_yaml,
)

__all__ = [
    "OUTLINES",
    "Counts",
    "EntryMatch",
    "ModuleNode",
    "Outline",
    "Resolution",
    "count",
    "grep",
    "load_outline",
    "resolve",
    "resolve_strict",
    "to_yaml",
]
