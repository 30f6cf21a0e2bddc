"""Clips, and the manifest that lists them: the data set as a run sees it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sousa_engine.data import synth
from sousa_engine.data.splits import SPLITS


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A file or row that is left out. reason: a clause that follows the name; kind: the reason in one word."""

    name: str
    reason: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One example. duration_s: of the recording, before it is padded or cut to the manifest's clip_s.

    content: 32 hex digits of its sound, wherever its file is; "" if they are not known: the file was not scanned.
    """

    clip_id: str
    label: str
    split: str
    group: str  # the player ("" if unknown); all clips of a group are in one split
    duration_s: float
    columns: Mapping[str, str | float]
    source: synth.ClipPlan | Path
    content: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All clips of a data set, sorted by clip_id within their layout; every class is in every split."""

    name: str
    layout: str  # embedded, folder or csv
    classes: tuple[str, ...]  # sorted; the index is the class number in a network's output
    clips: tuple[Clip, ...]
    clip_s: float
    sample_rate_hz: int
    content_key: str  # 32 hex digits that change when any waveform or the order does; independent of labels and splits
    notes: tuple[str, ...]
    excluded: tuple[Excluded, ...] = ()
    warnings: tuple[str, ...] = ()  # the notes that deserve attention before a run; the other notes are facts
    files_key: str = ""  # as content_key, by the places, sizes and times of the files

    @cached_property
    def by_id(self) -> dict[str, Clip]:
        """clip_id -> its clip."""
        return {clip.clip_id: clip for clip in self.clips}

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Class -> split -> number of clips, in the order of `classes` and of train, valid, test."""
        found = {label: dict.fromkeys(SPLITS, 0) for label in self.classes}
        for clip in self.clips:
            found[clip.label][clip.split] += 1
        return found

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of clips."""
        return {split: sum(row[split] for row in self.counts.values()) for split in SPLITS}

    @cached_property
    def contents(self) -> dict[str, str]:
        """Split -> 32 hex digits of its sounds with their labels, whatever their names, places and order.

        {} if any sound is not known (see Clip).
        """
        if not all(clip.content for clip in self.clips):
            return {}
        found = {}
        for split in SPLITS:
            lines = sorted(f"{clip.content} {clip.label}\n" for clip in self.clips if clip.split == split)
            found[split] = _digest("".join(lines))
        return found

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits that change when any sound, label or split does, or the order of the clips.

        While the sounds are not known, also with the names, places and times of the files.
        """
        lines = (f"{clip.label}\0{clip.split}\n" for clip in self.clips)
        return _digest(f"{self.content_key}\n{self.clip_s!r}\n{''.join(lines)}")

    def indices(self, split: str) -> tuple[int, ...]:
        """The positions of a split's clips in `clips`, which are also their rows in a feature cache."""
        return tuple(i for i, clip in enumerate(self.clips) if clip.split == split)

    def class_numbers(self) -> tuple[int, ...]:
        """The class number of each clip, in the order of `clips`."""
        number = {label: i for i, label in enumerate(self.classes)}
        return tuple(number[clip.label] for clip in self.clips)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
