"""Make train, valid and test splits: each player is in one split, and each class is in all of them."""

from __future__ import annotations

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sousa_engine.core.errors import DataError

SPLITS: tuple[str, ...] = ("train", "valid", "test")

_ALIASES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_FILLERS = frozenset(
    {"audio", "clips", "data", "dataset", "files", "samples", "set", "sounds", "split", "wav", "wavs", "x"}
)
_MOST_CHOICES = 3**6  # ways to share out groups, all of which are tried
_TRIES = 20  # random orders of the groups to try; the most even result is kept


class NoRoom(DataError):
    """Classes that cannot be in every split. classes: class -> the reason, a clause that follows its name."""

    def __init__(self, message: str, classes: Mapping[str, str]):
        super().__init__(message)
        self.classes = classes


class Item(NamedTuple):
    """The facts that decide a clip's split. An empty group means that the clip is not grouped with any other."""

    clip_id: str
    label: str
    group: str


def split_name(text: str) -> str | None:
    """train, valid or test for its usual spellings ("Validation", "dev", "TEST"); None for any other word."""
    return _ALIASES.get(text.strip().casefold())


def split_names(names: Collection[str], *, alone: bool = False) -> dict[str, str]:
    """Folder name -> its split, if these folders are splits: all of them, train among them; {} if not.

    Words that all the names share, or that only say "data", do not count: x_train and x_test, test_data,
    FSD50K.dev_audio and FSD50K.eval_audio. alone: look at each name for itself; train may be missing.
    """
    words = {name: [word for word in re.split(r"[\s_.-]+", name.casefold()) if word] for name in names}
    shared = set.intersection(*map(set, words.values())) if len(words) > 1 else set()
    found = {}
    for name, parts in words.items():
        known = [_ALIASES[word] for word in parts if word in _ALIASES]
        rest = [word for word in parts if word not in _ALIASES and word not in _FILLERS | shared]
        if len(set(known)) != 1 or rest:
            return {}
        found[name] = known[0]
    if not alone and "train" not in found.values():  # dev and eval, as FSD50K names what is trained on and what is not
        found = {name: "train" if "dev" in words[name] else split for name, split in found.items()}
    return found if alone or "train" in found.values() or set(found.values()) == {"valid", "test"} else {}


def assign(items: Sequence[Item], fractions: Mapping[str, float], seed: int) -> tuple[str, ...]:
    """A split for each item: the shares in `fractions` ({"valid": 0.15, "test": 0.2}), and train for the rest.

    With groups, each group is in one split, and the classes' shares are as even as the groups allow; without groups,
    each class is divided separately. The result depends on ids, labels, groups, fractions and seed, not on the order.
    Raises NoRoom naming the classes that cannot be in every split.
    """
    order = sorted(range(len(items)), key=lambda i: items[i].clip_id)
    ordered = [items[i] for i in order]
    if any(item.group for item in items):
        found = _by_group(ordered, fractions, seed)
    else:
        found = _by_class(ordered, fractions, seed)
    splits = [""] * len(items)
    for i, split in zip(order, found, strict=True):
        splits[i] = split
    return tuple(splits)


def check(items: Sequence[Item], splits: Sequence[str]) -> None:
    """Raise NoRoom if classes are missing in a split; the message names the first one and what to do."""
    clips = Counter(item.label for item in items)
    held = Counter((item.label, split) for item, split in zip(items, splits, strict=True))
    gaps = [(label, [s for s in SPLITS if not held[label, s]]) for label in sorted(clips)]
    gaps = [(label, missing) for label, missing in gaps if missing]
    if not gaps:
        return
    label, missing = gaps[0]
    groups = {item.group for item in items if item.label == label and item.group}
    by = f" by {_count(len(groups), 'player')}" if groups else ""
    more = len(gaps) - 1
    rest = f" ({more} more {'class has' if more == 1 else 'classes have'} gaps)" if more else ""
    raise NoRoom(
        f"Class {label!r} has no clip in {' and '.join(missing)}{rest}; it has {_count(clips[label], 'clip')}{by}. "
        "Every class needs clips in train, valid and test"
        + (", by different players in each" if groups else "")
        + ": add recordings, move some to that split, or remove the class"
        + ("; or set data.group_column=none, and the same players are in train and test." if groups else "."),
        {
            label: f"has no clip in {' and '.join(missing)} ({_count(clips[label], 'clip')} in all)"
            for label, missing in gaps
        },
    )


def shared_groups(items: Sequence[Item], splits: Sequence[str]) -> tuple[str, ...]:
    """Groups (players) that are in train and also in valid or test, sorted."""
    seen: dict[str, set[str]] = {}
    for item, split in zip(items, splits, strict=True):
        if item.group:
            seen.setdefault(item.group, set()).add(split)
    return tuple(sorted(g for g, where in seen.items() if "train" in where and len(where) > 1))


def _by_class(items: Sequence[Item], fractions: Mapping[str, float], seed: int) -> list[str]:
    splits = ["train"] * len(items)
    members: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        members.setdefault(item.label, []).append(i)
    few = f"but {len(fractions) + 1} splits need at least {len(fractions) + 1}"
    small = {
        label: f"has {_count(len(indices), 'clip')}, {few}"
        for label, indices in sorted(members.items())
        if len(indices) <= len(fractions)
    }
    if small:
        label, why = next(iter(small.items()))
        raise NoRoom(f"Class {label!r} {why}. Add recordings, or remove the class.", small)
    for label, indices in members.items():
        n, needed = len(indices), len(fractions) + 1
        # A separate seed for each class: a new class does not change the split of the others.
        rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
        shuffled = [indices[i] for i in rng.permutation(n)]
        at = 0
        for split, fraction in fractions.items():
            spare = n - at - (needed - 1)
            take = min(max(1, round(fraction * n)), max(1, spare))
            for i in shuffled[at : at + take]:
                splits[i] = split
            at += take
            needed -= 1
    return splits


def _by_group(items: Sequence[Item], fractions: Mapping[str, float], seed: int) -> list[str]:
    labels = sorted({item.label for item in items})
    keys = [item.group or f"\0{item.clip_id}" for item in items]
    groups = sorted(set(keys))
    row, column = {g: i for i, g in enumerate(groups)}, {c: i for i, c in enumerate(labels)}
    held = np.zeros((len(groups), len(labels)))
    for item, key in zip(items, keys, strict=True):
        held[row[key], column[item.label]] += 1

    names = ("train", *fractions)
    shares = np.array([1.0 - sum(fractions.values()), *fractions.values()])
    wanted = shares[:, None] * held.sum(axis=0)
    rng = np.random.default_rng(seed)

    def score(choice: np.ndarray) -> tuple[int, float]:
        """Lower is better: classes that are missing in a split, then how far the shares are from the wanted ones."""
        got = np.stack([held[choice == s].sum(axis=0) for s in range(len(names))])
        return int((got == 0).sum()), float((((got - wanted) / wanted.clip(1.0)) ** 2).sum())

    best = min((_share_out(held, wanted, rng) for _ in range(_TRIES)), key=score)
    if (
        score(best)[0] and len(names) ** len(groups) <= _MOST_CHOICES
    ):  # with few groups, the tries may miss the only way
        best = min(map(np.array, itertools.product(range(len(names)), repeat=len(groups))), key=score)
    splits = [names[best[row[key]]] for key in keys]
    if score(best)[0]:
        check(items, splits)
    return splits


def _share_out(held: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A split for each group, large groups first: the one that brings the class counts nearest to the wanted ones."""
    order = rng.permutation(len(held))
    order = order[np.argsort(-held[order].sum(axis=1), kind="stable")]
    got = np.zeros_like(wanted)
    scale = wanted.clip(1.0)
    choice = np.zeros(len(held), dtype=int)
    for g in order:
        before = (((got - wanted) ** 2) / scale).sum(axis=1)
        after = (((got + held[g] - wanted) ** 2) / scale).sum(axis=1)
        choice[g] = int(np.argmin(after - before))
        got[choice[g]] += held[g]
    return choice


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
