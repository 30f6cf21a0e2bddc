"""A data set as data: its clips, its manifest, and what was left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sousa_engine.data import synth


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A file or row that is left out, and why: one clause, fit to stand behind the name. kind: the same in a word."""

    name: str
    reason: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One example. duration_s: of the recording, before it is padded or cut to the manifest's clip_s."""

    clip_id: str
    label: str
    split: str
    group: str  # who plays ("" where the data does not say); a group stays whole within one split
    duration_s: float
    columns: Mapping[str, str | float]
    source: synth.ClipPlan | Path


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All clips of a data set, sorted by clip_id within their layout; every class is in every split."""

    name: str
    layout: str  # embedded, folder or csv
    classes: tuple[str, ...]  # sorted: the index is the class's number in a network's output
    clips: tuple[Clip, ...]
    clip_s: float
    sample_rate_hz: int
    content_key: str  # 32 hex digits that change whenever a waveform would; labels and splits are not in it
    notes: tuple[str, ...]
    excluded: tuple[Excluded, ...] = ()
    warnings: tuple[str, ...] = ()  # those of the notes that are to be weighed before a run; the others are facts

    @cached_property
    def by_id(self) -> dict[str, Clip]:
        return {clip.clip_id: clip for clip in self.clips}

    @cached_property
    def split_key(self) -> str:
        """32 hex digits that change with any clip's name, label, split or player: what content_key leaves open."""
        digest = hashlib.sha256()
        for clip in self.clips:
            facts = "\0".join((clip.clip_id, clip.label, clip.split, clip.group))
            digest.update(f"{facts}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:32]

    def indices(self, split: str) -> tuple[int, ...]:
        """Positions in `clips` (and in a feature cache) of one split's clips."""
        return tuple(i for i, clip in enumerate(self.clips) if clip.split == split)

    def targets(self) -> tuple[int, ...]:
        """The number of each clip's class, in the order of `clips`."""
        number = {label: i for i, label in enumerate(self.classes)}
        return tuple(number[clip.label] for clip in self.clips)
