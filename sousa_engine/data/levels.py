"""Which level of a folder holds the classes, by the names of its folders; and what the other levels are.

A level counts from 1, the folders directly in the data set. Nothing here looks at a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sousa_engine.core.errors import DataError
from sousa_engine.data.splits import split_names

Kind = Literal["classes", "split", "group", "single", "other"]

GROUPS = frozenset(
    {
        "actor", "artist", "drummer", "fold", "kit", "participant", "patient", "performer", "person", "player",
        "session", "speaker", "subject", "take", "user",
    }
)  # fmt: skip
"""Words that name who or what made a recording, where a number follows."""

_CLASSES = frozenset({"category", "class", "exercise", "label", "lesson", "pattern", "rudiment", "stroke", "type"})
_NUMBERED = re.compile(r"(.*?)[\s_.-]*\d+[a-z]?")
_WORD = 3  # letters: c1, c2, ... name classes as well as anything else
_SAME = 0.8  # of the names below two classes, so that they are the same names


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of folders. names: in order of appearance, each once."""

    number: int
    kind: Kind
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What the levels are. classes: the level that holds them; 0 if no level does.

    split, group: their levels, 0 where there is none. splits: folder name -> train, valid or test.
    """

    classes: int
    split: int = 0
    group: int = 0
    splits: Mapping[str, str] = field(default_factory=dict)
    all: tuple[Level, ...] = ()


class Unclear(DataError):
    """The levels can be read in more than one way, or in none that makes sense. fields: the reading that would fit."""

    def __init__(self, message: str, fields: Mapping[str, object] | None = None):
        super().__init__(message)
        self.fields = dict(fields or {})


def read(root: str, folders: Sequence[tuple[str, ...]], level: int | None = None) -> Levels:
    """The levels of a data set. folders: for each audio file, the folders that lead to it.

    level: the one that holds the classes, if the user says it; then nothing is doubted. Raises Unclear.
    """
    names = _names(folders)
    if level is not None:
        return _told(root, folders, names, level)
    at = 1
    while len(names) > at and len(names[at - 1]) == 1 and _all_deeper(folders, at):
        at += 1  # a folder that holds all the others
    if not names or len(names) < at:
        return Levels(classes=0)
    split, splits = 0, {}
    if found := split_names(names[at - 1]):
        split, splits = at, found
        at += 1
        if len(names) < at:
            return Levels(classes=0, split=split, splits=splits, all=_described(names, classes=0, split=split, group=0))
    else:
        _refuse_mixture(root, names[at - 1])
    here = list(dict.fromkeys(parts[at - 1] for parts in folders if len(parts) >= at))
    below = _below(folders, at)
    if (
        not split
        and len(below) > 1
        and (found := split_names(list(dict.fromkeys(n for b in below.values() for n in b))))
    ):
        return Levels(classes=at, split=at + 1, splits=found, all=_described(names, classes=at, split=at + 1, group=0))
    _refuse_implausible(root, at, here, below)
    group = at + 1 if _are_groups(below) else 0
    return Levels(
        classes=at, split=split, group=group, splits=splits, all=_described(names, classes=at, split=split, group=group)
    )


def stem_of(names: Collection[str]) -> str:
    """`fold` for fold1, fold2, ...: the word that names share before a running number; "" if they do not."""
    if len(names) < 2:
        return ""
    stems = set()
    for name in names:
        found = _NUMBERED.fullmatch(name.strip())
        if not found or not found[1]:
            return ""
        stems.add(found[1].strip(" _.-").casefold())
    return stems.pop() if len(stems) == 1 else ""


def some(names: Sequence[str], n: int = 3) -> str:
    """`a, b, c and 7 more`."""
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _told(root: str, folders: Sequence[tuple[str, ...]], names: list[list[str]], level: int) -> Levels:
    if level > len(names):
        raise DataError(
            f"data.level={level}, but the audio files of {root} lie at most {len(names)} folders deep. "
            f"Set data.level to a number from 1 to {len(names)}."
        )
    split, splits = next(
        ((at, found) for at in range(1, len(names) + 1) if at != level and (found := split_names(names[at - 1]))),
        (0, {}),
    )
    above = [at for at in range(1, level) if at != split and len(names[at - 1]) > 1]
    group = above[-1] if above else 0
    if not group and level + 1 <= len(names) and level + 1 != split and _are_groups(_below(folders, level)):
        group = level + 1
    return Levels(
        classes=level, split=split, group=group, splits=splits,
        all=_described(names, classes=level, split=split, group=group),
    )  # fmt: skip


def _refuse_mixture(root: str, names: Sequence[str]) -> None:
    known = [name for name in names if split_names([name], alone=True)]
    others = [name for name in names if name not in known]
    if len(known) > 1 and others:
        raise Unclear(
            f"{root} mixes split folders ({some(known)}) with class folders ({some(others)}). "
            "Use either ROOT/train/<class>/... or ROOT/<class>/...; or set data.level to the level of the classes."
        )


def _refuse_implausible(root: str, at: int, here: Sequence[str], below: Mapping[str, Sequence[str]]) -> None:
    stem = stem_of(here)
    deeper = _all_names(below)
    fits = {"data.level": at + 1} if len(deeper) > 1 else {}
    if len(stem) >= _WORD and stem not in _CLASSES:
        instead = (
            f"If the classes are the folders below them ({some(deeper)}), set data.level={at + 1}"
            if fits
            else "If a table lists the labels, put it beside them with the columns path and label"
        )
        raise Unclear(
            f"{root}: the folders {some(here)} look like {stem}s, not like classes: one word and a running number. "
            f"{instead}; if they are the classes, set data.level={at}.",
            fits,
        )
    if len(here) < 2 or len(deeper) < 2 or _are_groups(below):
        return
    shared = set.intersection(*map(set, below.values())) if len(below) == len(here) else set()
    if len(shared) > 1 and len(shared) >= _SAME * len(deeper):
        raise Unclear(
            f"{root}: each of the folders {some(here)} holds the same folders ({some(deeper)}), so either can be the "
            f"classes. Set data.level={at} for {some(here, 2)}, or data.level={at + 1} for {some(deeper, 2)}.",
            fits,
        )


def _are_groups(below: Mapping[str, Sequence[str]]) -> bool:
    """Whether the folders below the classes are named after who played: player1, player2."""
    names = _all_names(below)
    return len(names) > 1 and stem_of(names) in GROUPS


def _all_names(below: Mapping[str, Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for names in below.values() for name in names))


def _names(folders: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """For each level, the names of its folders."""
    found: list[dict[str, None]] = []
    for parts in set(folders):
        for at, name in enumerate(parts):
            if at == len(found):
                found.append({})
            found[at][name] = None
    return [sorted(names) for names in found]


def _all_deeper(folders: Sequence[tuple[str, ...]], at: int) -> bool:
    """Whether no file lies directly in a folder of this level."""
    counts = Counter(len(parts) > at for parts in folders if len(parts) >= at)
    return counts[False] == 0


def _below(folders: Sequence[tuple[str, ...]], at: int) -> dict[str, list[str]]:
    """Each folder of this level -> the folders in it that lead to audio."""
    found: dict[str, dict[str, None]] = {}
    for parts in sorted(set(folders)):
        if len(parts) > at:
            found.setdefault(parts[at - 1], {})[parts[at]] = None
    return {name: list(names) for name, names in found.items()}


def _described(names: list[list[str]], *, classes: int, split: int, group: int) -> tuple[Level, ...]:
    kinds: dict[int, Kind] = {classes: "classes", split: "split", group: "group"}
    return tuple(
        Level(
            number=at,
            kind=kinds.get(at, "single" if len(found) == 1 else "other"),
            names=tuple(found),
        )
        for at, found in enumerate(names, 1)
    )
