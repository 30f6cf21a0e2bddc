"""What identifies the data of a run, wherever its files are, and how the data of two runs differ in words.

A run keeps it among its facts, and so do its checkpoints: `version`, `clip_s` in seconds, `all` (sounds, labels, splits
and their order), and for each split [key of its sounds and labels, number of clips]. data.manifest makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SPLITS = ("train", "valid", "test")
VERSION = 1  # increased when the same clips would have other keys: those of two versions cannot be compared


def change(then: Mapping[str, Any], now: Mapping[str, Any], splits: tuple[str, ...] = SPLITS) -> str:
    """`the test split differs (6 clips, then 6)`: which splits differ, as a clause; "" if none of these does."""
    if then.get("version") != now.get("version"):
        return "its contents were recorded by another version of this program, so they cannot be compared"
    if then["clip_s"] != now["clip_s"]:
        return f"the clip length differs ({then['clip_s']:g} s, then {now['clip_s']:g} s)"
    return " and ".join(
        f"the {split} split differs ({then[split][1]:,} clips, then {now[split][1]:,})"
        for split in splits
        if then[split][0] != now[split][0]
    )


def of_facts(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The contents that a run recorded; {} if it recorded none, or something else in their place."""
    data = facts.get("data")
    return checked(data.get("contents")) if isinstance(data, Mapping) else {}


def checked(found: Any) -> Mapping[str, Any]:
    """Contents as they were read from a file; {} for anything else."""
    if not isinstance(found, Mapping) or not isinstance(found.get("clip_s"), int | float):
        return {}
    return found if all(_is_split(found.get(split)) for split in SPLITS) else {}


def _is_split(value: Any) -> bool:
    return isinstance(value, list) and [type(part) for part in value] == [str, int]
