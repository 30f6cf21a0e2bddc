"""What lies in a folder, by names alone: audio files, tables, lists, and what does not belong to the data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sousa_engine.core.errors import DataError
from sousa_engine.data import headers, tables

MOST_FILES = 2_000_000  # below a folder; listing them takes half a minute
NOISE = "_background_noise_"  # of Speech Commands: long noise, not a word
_HELPERS = frozenset({"__macosx", "__pycache__", "node_modules", NOISE})
_MOST_TABLES = 40
_TABLE_DEPTH = 3
_DEVICES = ("/proc", "/sys", "/dev")
_SYSTEM = tuple(
    map(Path, ("/bin", "/boot", "/etc", "/home", "/lib", "/lib64", "/mnt", "/media", "/opt", "/root", "/run", "/sbin"))
) + tuple(map(Path, ("/srv", "/tmp", "/usr", "/var", "/Applications", "/Library", "/System", "/Users", "/Volumes")))


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A folder as it was listed. audio: its audio files, sorted within each folder; places that cannot be listed, and
    links to folders, are among them, so that they are reported.

    tables: files that may be tables, those nearest to the root first. lists: text files. others: passed over.
    helpers: folders that are no part of the data -> the audio files in them.
    """

    root: Path
    audio: tuple[Path, ...]
    tables: tuple[Path, ...] = ()
    lists: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    helpers: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def folders(self) -> tuple[tuple[str, ...], ...]:
        """For each audio file, the names of the folders between the root and it."""
        return tuple(path.relative_to(self.root).parts[:-1] for path in self.audio)

    @cached_property
    def by_name(self) -> dict[str, list[Path]]:
        """The name of an audio file, with and without its suffix -> the files of that name."""
        found: dict[str, list[Path]] = {}
        for path in self.audio:
            for name in {path.name, path.stem}:
                found.setdefault(name, []).append(path)
        return found


def look(root: Path) -> Survey:
    """List a folder. Links to folders are not followed. Raises DataError for a folder that cannot be a data set."""
    refuse_system_folder(root)
    audio: list[Path] = []
    others: list[Path] = []
    found_tables: list[Path] = []
    lists: list[Path] = []
    helpers: dict[str, int] = {}
    for path in _walk(root, others, helpers):
        audio.append(path)
    for path in others:
        depth = len(path.relative_to(root).parts)
        if path.name.startswith(".") or depth > _TABLE_DEPTH:
            continue
        if path.suffix.lower() in tables.SUFFIXES:
            found_tables.append(path)
        elif path.suffix.lower() == ".txt":
            lists.append(path)
    found_tables.sort(key=lambda path: (len(path.parts), path))
    return Survey(
        root=root,
        audio=tuple(audio),
        tables=tuple(found_tables[:_MOST_TABLES]),
        lists=tuple(lists),
        others=tuple(others),
        helpers=helpers,
    )


def is_too_general(root: Path) -> bool:
    """Whether a folder is one of the system's or of a user's home, below which everything lies."""
    devices = any(root.is_relative_to(place) for place in _DEVICES)
    return root == root.parent or devices or root in (*_SYSTEM, Path.home())


def refuse_system_folder(root: Path) -> None:
    if is_too_general(root):
        raise DataError(
            f"{root} is a folder of the system or your home folder, not a data set: everything below it would be "
            "searched for audio files. Name the folder that holds the folders of classes."
        )


def is_audio(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in headers.SUFFIXES | headers.FOREIGN_SUFFIXES


def is_helper(name: str) -> bool:
    return name.casefold() in _HELPERS


def _walk(root: Path, others: list[Path], helpers: dict[str, int]) -> Iterator[Path]:
    """Every audio file below a folder, and every place that cannot be looked into. others, helpers: filled."""
    unread: list[Path] = []
    todo, seen = [root], 0
    while todo:
        for place, folders, names in os.walk(todo.pop(), onerror=lambda error: unread.append(Path(error.filename))):
            here = Path(place)
            inside = sorted(name for name in folders if not name.startswith("."))
            useless = {name for name in inside if is_helper(name)}
            helpers |= {(here / name).relative_to(root).as_posix(): _count(here / name) for name in sorted(useless)}
            links = {name for name in inside if (here / name).is_symlink()} - useless
            classes = {name for name in links if here == root and not is_audio(name) and _leads_out(root / name, root)}
            todo += (root / name for name in sorted(classes, reverse=True))
            odd = links - classes | {name for name in inside if is_audio(name)}
            others += (here / name for name in sorted(set(folders) - set(inside)))
            folders[:] = [name for name in inside if name not in odd | useless | classes]
            heard = {name for name in names if is_audio(name)}
            others += (here / name for name in sorted(set(names) - heard))
            seen += len(names)
            if seen > MOST_FILES:
                raise DataError(
                    f"{root} holds more than {MOST_FILES:,} files, up to {here}: more than a data set can have. "
                    "Name the folder that holds the folders of classes."
                )
            yield from (here / name for name in sorted(heard | odd))
    if root in unread:
        raise DataError(f"{root} cannot be read.")
    yield from unread


def _leads_out(link: Path, root: Path) -> bool:
    """Whether a link leads to a folder that neither holds the root nor is in it."""
    try:
        there = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    return there.is_dir() and not root.is_relative_to(there) and not there.is_relative_to(root)


def _count(folder: Path) -> int:
    return sum(is_audio(name) for _, _, names in os.walk(folder) for name in names)
