"""The recordings that a data set lists, and which of them can be used. At most headers are read.

data/reading.py lists the recordings by name; `as_now` takes the known facts of their files; `read_headers` separates
the usable ones from the rest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sousa_engine.data import headers
from sousa_engine.data.clips import Excluded
from sousa_engine.data.levels import Level
from sousa_engine.data.soundness import Soundness


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A file that a data set lists as a clip; nothing of it was read. written: its label before it was cleaned.

    split and group are "" where the data set does not name them.
    """

    clip_id: str
    path: Path
    label: str
    written: str
    split: str = ""
    group: str = ""
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """Entries in a data set's folder that do not belong to it. names: the first few; a hidden folder counts as one.

    kind: "hidden" (the name starts with a dot), "not-audio" (by suffix), "beside" (audio outside of the class folders).
    """

    kind: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a data set was read as. way: "folders", "lists" (folders with lists of their splits) or "table".

    labels, splits, groups, folds: where each comes from, in words; "" where from nowhere. table: that was used, ""
    if none was. columns: role -> its column in that table. choices: role -> the columns of that table that could be it.
    all_levels: of the folders. evidence: sentences, the strongest first. fields: the data.* fields that force this.
    """

    source: Path
    way: str
    labels: str
    splits: str = ""
    groups: str = ""
    folds: str = ""
    table: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    all_levels: tuple[Level, ...] = ()
    evidence: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    def sentence(self, clips: int, classes: int) -> str:
        """`200 clips, 50 classes from the column category, groups from the column fold.`"""
        parts = [f"{clips:,} clips", f"{classes:,} classes from {self.labels}"]
        if self.splits:
            parts.append(f"splits from {self.splits}")
        if self.groups:
            parts.append(f"groups from {self.groups}, kept whole")
        return ", ".join(parts) + "."


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """The files that a data set lists, by name only. source: its folder or table.

    excluded: rows of a table without a path or label. reading: how its folders and tables were read.
    """

    source: Path
    files: tuple[Recording, ...]
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    reading: Reading | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """The path of each file, once."""
        return tuple(dict.fromkeys(one.path for one in self.files))


@dataclass(frozen=True, kw_only=True)
class UsableRecording(Recording):
    """A recording whose header was read and is acceptable. digest: see Soundness; "" if it was not scanned."""

    header: headers.AudioHeader
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Readable:
    """The usable recordings, sorted by clip_id; the files and rows that are left out; notes for the user."""

    recordings: tuple[UsableRecording, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


def as_now(paths: Iterable[Path], *known: Mapping[str, Soundness]) -> dict[str, Soundness]:
    """Path -> soundness of the current file: the first of `known` for its present size and time.

    A file that the file system makes unusable has that as its error. One without known facts is missing.
    """
    found: dict[str, Soundness] = {}
    for path in paths:
        name = str(path)
        try:
            facts = headers.file_facts(path)
        except headers.Unusable as error:
            found[name] = Soundness(size=0, mtime_ns=0, error=str(error), kind=error.kind)
            continue
        for soundness in (source[name] for source in known if name in source):
            then = soundness.size, soundness.mtime_ns, soundness.ctime_ns
            if then == (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns):
                found[name] = soundness
                break
    return found


def read_headers(recordings: Recordings, soundness: Mapping[str, Soundness]) -> Readable:
    """Separate the usable recordings from the rest. A class that loses every file is named in the notes.

    soundness: as from `as_now`; the header of a file that is missing there is read here.
    """
    excluded = list(recordings.excluded)
    usable = []
    for one in sorted(recordings.files, key=lambda one: one.clip_id):
        known = soundness.get(str(one.path))
        try:
            header = _header(one.path, known)
        except headers.Unusable as error:
            excluded.append(Excluded(name=shown(one.clip_id), reason=str(error), kind=error.kind))
        else:
            usable.append(UsableRecording(**vars(one), header=header, digest=known.digest if known else ""))
    lost = sorted({one.label for one in recordings.files} - {one.label for one in usable})
    notes = [f"Class {label!r} has no usable clip: it is left out." for label in lost]
    return Readable(recordings=tuple(usable), excluded=tuple(excluded), notes=(*recordings.notes, *notes))


def _header(path: Path, known: Soundness | None) -> headers.AudioHeader:
    if known is None:
        return headers.read_header(path)
    if known.error:
        raise headers.Unusable(known.kind, known.error)
    return known.header


def shown(name: str) -> str:
    """A file's name for tables and sentences, with characters that cannot be printed or stored as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def clean_label(text: str) -> str:
    """A label in the form that is compared: without surrounding blanks, and with accents composed (NFC)."""
    return unicodedata.normalize("NFC", text.strip())
