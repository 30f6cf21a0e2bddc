"""The two layouts people bring: a folder of classes, and a CSV file. Finds recordings; opens headers only."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sousa_engine.core.errors import DataError, nearest
from sousa_engine.data import headers
from sousa_engine.data.clips import Excluded
from sousa_engine.data.soundness import Soundness
from sousa_engine.data.splits import split_name

GROUP_COLUMNS = ("player", "group")
_MAX_CSV_MIB = 64
_NAMED = 3  # of the files that are passed over


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One usable file: its header was read, its label is known. split and group are "" where the data names none."""

    clip_id: str
    path: Path
    label: str
    split: str
    group: str
    header: headers.AudioHeader
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout holds: recordings sorted by clip_id, what was left out, and what a user should know."""

    recordings: tuple[Recording, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A file that is claimed to be a clip, before anybody looked at it. written: its label, letter by letter."""

    clip_id: str
    path: Path
    label: str
    written: str
    split: str = ""
    group: str = ""
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PassedOver:
    """What stands in a data set's folder and is no part of it. names: the first few; a hidden folder counts once.

    kind: "hidden" (its name begins with a dot), "not-audio" (by its suffix), "beside" (audio outside of the classes).
    """

    kind: str
    count: int
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a layout claims to hold: names alone, no file was looked at."""

    rows: tuple[Row, ...]
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()


def list_folder(root: Path) -> Listing:
    """ROOT/<class>/<files>, or ROOT/<train|valid|test>/<class>/<files>; files may lie deeper.

    Raises DataError where there are no classes, or where split folders and class folders are mixed.
    """
    children = _folders(root)
    notes: list[str] = []
    stray = sum(1 for entry in _entries(root) if entry not in children and _is_audio(entry.name))
    if stray and not children:
        raise DataError(
            f"{root} holds {stray} audio files and no folders. "
            "Put them into one folder for each class, or list them in a CSV file with the columns path and label."
        )
    if not children:
        raise DataError(f"{root} holds no folders. A folder of classes looks like ROOT/<class>/clip.wav.")
    if stray:
        notes.append(f"{stray} audio files beside the class folders are not read.")

    named = {entry.name: split_name(entry.name) for entry in children}
    if all(named.values()) and "train" in named.values():
        places = [(Path(entry.path), named[entry.name] or "") for entry in children]
    elif any(named.values()) and len([n for n in named.values() if n]) > 1:
        splits, classes = [n for n in named if named[n]], [n for n in named if not named[n]]
        raise DataError(
            f"{root} mixes split folders ({', '.join(splits[:3])}) with class folders ({', '.join(classes[:3])}). "
            "Use ROOT/train/<class>/..., or ROOT/<class>/... alone."
        )
    else:
        places = [(root, "")]

    rows: list[Row] = []
    others: list[Path] = []
    for place in dict.fromkeys([root, *(place for place, _ in places)]):
        inside = {entry.name for entry in _folders(place)}
        others += sorted(path for path in place.iterdir() if path.name not in inside)
    for place, split in places:
        for folder in _folders(place):
            files = list(_audio_files(Path(folder.path), others))
            if not files:
                notes.append(f"The folder {Path(folder.path).relative_to(root).as_posix()} holds no audio.")
            label = clean_label(folder.name)
            rows += [
                Row(clip_id=f.relative_to(root).as_posix(), path=f, label=label, written=folder.name, split=split)
                for f in files
            ]
    if not rows:
        raise DataError(
            f"{root} holds no audio files. Files ending in {', '.join(sorted(headers.SUFFIXES))} are read, "
            "in one folder for each class."
        )
    return Listing(rows=tuple(rows), notes=tuple(notes), passed_over=_passed_over(root, others))


def list_csv(path: Path) -> Listing:
    """A table with the columns path and label; split, and player (or group), are used where they stand.

    Paths are relative to the CSV file; every other column is kept with its clip. Comma, semicolon or tab.
    Raises DataError naming the row or the column at fault.
    """
    text = _text(path)
    reader = csv.DictReader(io.StringIO(text), delimiter=_delimiter(path, text), strict=True)
    try:
        rows, excluded = _csv_rows(path, reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    if not rows:
        first = f" {excluded[0].name} {excluded[0].reason}." if excluded else ""
        raise DataError(f"{path} lists no clips.{first}")
    return Listing(rows=tuple(rows), excluded=tuple(excluded))


def probe(listing: Listing, verdicts: Mapping[str, Soundness]) -> Found:
    """Open every header, or take what decoding said of the file as it is now; what cannot be used is excluded.

    verdicts: by path. A class that has lost every file is named in the notes.
    """
    excluded = list(listing.excluded)
    recordings = []
    for row in sorted(listing.rows, key=lambda r: r.clip_id):
        try:
            known = current(row.path, verdicts)
            if known is not None and known.error:
                raise headers.Unusable(known.kind, known.error)
            header = known.header if known is not None else headers.read_header(row.path)
        except headers.Unusable as error:
            excluded.append(Excluded(name=shown(row.clip_id), reason=str(error), kind=error.kind))
            continue
        recordings.append(
            Recording(
                clip_id=row.clip_id,
                path=row.path,
                label=row.label,
                split=row.split,
                group=row.group,
                header=header,
                columns=row.columns,
            )
        )
    lost = sorted({row.label for row in listing.rows} - {r.label for r in recordings})
    notes = [f"Class {label!r} has no usable clip: it is left out." for label in lost]
    return Found(recordings=tuple(recordings), excluded=tuple(excluded), notes=(*listing.notes, *notes))


def current(path: Path, verdicts: Mapping[str, Soundness]) -> Soundness | None:
    """The verdict on a file if it is still of the size and time that were judged. Raises Unusable as file_facts."""
    facts = headers.file_facts(path)
    known = verdicts.get(str(path))
    return known if known and (known.size, known.mtime_ns) == (facts.st_size, facts.st_mtime_ns) else None


def shown(name: str) -> str:
    """A file's name for tables and sentences: what cannot be seen or stored is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def clean_label(text: str) -> str:
    """A label as it is compared: without outer blanks, and letters with accents in one spelling (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def _csv_rows(path: Path, reader: csv.DictReader) -> tuple[list[Row], list[Excluded]]:
    columns = _columns(path, reader.fieldnames or [])
    group_column = next((columns[name] for name in GROUP_COLUMNS if name in columns), None)
    used = {columns["path"], columns["label"], columns.get("split"), group_column}
    rows: list[Row] = []
    excluded: list[Excluded] = []
    seen: dict[str, int] = {}
    blank_splits: list[int] = []
    for row in reader:
        line = reader.line_num
        values = {key: (value or "").strip() for key, value in row.items() if key is not None}
        if None in row:
            raise DataError(f"{path}, line {line}: more values than columns. Put quotes around values with commas.")
        where, written = values[columns["path"]], values[columns["label"]]
        label = clean_label(written)
        if not where or not label:
            excluded.append(
                Excluded(name=f"line {line}", reason=f"it has no {'label' if where else 'path'}", kind="row")
            )
            continue
        if where in seen:
            raise DataError(
                f"{path}, lines {seen[where]} and {line} name the same file {where!r}. "
                "A clip can stand once only: in two splits it would be trained and tested on."
            )
        seen[where] = line
        split = values[columns["split"]] if "split" in columns else ""
        if split and split_name(split) is None:
            raise DataError(f"{path}, line {line}: {split!r} is not a split. Use train, valid or test.")
        if not split:
            blank_splits.append(line)
        rows.append(
            Row(
                clip_id=Path(where).as_posix(),
                path=path.parent / Path(where).expanduser(),
                label=label,
                written=written,
                split=split_name(split) or "",
                group=values[group_column] if group_column else "",
                columns={key: value for key, value in values.items() if key not in used},
            )
        )
    if "split" in columns and blank_splits and len(blank_splits) < len(rows):
        raise DataError(
            f"{path}, line {blank_splits[0]}: the split is empty here and given elsewhere. "
            "Fill the column, or leave it out and let the engine split."
        )
    return rows, excluded


def _columns(path: Path, header: Iterable[str]) -> dict[str, str]:
    """Lower-case name -> the name as it is written in the file."""
    names = [name for name in header if name is not None]
    folded = [name.strip().casefold() for name in names]
    twice = [name for name, n in Counter(folded).items() if n > 1 and name]
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} twice.")
    columns = dict(zip(folded, names, strict=True))
    for wanted, likely in (("path", ("file", "filename", "filepath", "audio")), ("label", ("class", "target", "name"))):
        if wanted not in columns:
            near = [c for c in likely if c in columns] or nearest(wanted, folded, n=1)
            cure = f" Rename {near[0]!r} to {wanted!r}." if near else ""
            raise DataError(
                f"{path} has no column {wanted!r}; its first line names {', '.join(names) or 'nothing'}.{cure}"
            )
    return columns


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_CSV_MIB * 2**20:
        raise DataError(f"{path} is larger than {_MAX_CSV_MIB} MiB. Is it the list of clips?")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as CSV UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from None
    if not text.strip():
        raise DataError(f"{path} is empty. Its first line names the columns: path,label")
    if "\0" in text:
        raise DataError(f"{path} is not a text file.")
    return text


def _delimiter(path: Path, text: str) -> str:
    header = text.lstrip().splitlines()[0]
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def _audio_files(folder: Path, others: list[Path]) -> Iterator[Path]:
    """Every audio file below a folder. Hidden files are not looked at; links to folders are not followed.

    So that they are reported, not passed over, folders are among them that cannot be listed, that are named like a
    file, or that are links. others: is given what is passed over.
    """
    unread: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=lambda error: unread.append(Path(error.filename))):
        inside = sorted(f for f in folders if not f.startswith("."))
        odd = {f for f in inside if _is_audio(f) or (Path(place) / f).is_symlink()}
        others += (Path(place) / f for f in sorted(set(folders) - set(inside)))
        folders[:] = [f for f in inside if f not in odd]
        heard = {n for n in names if _is_audio(n)}
        others += (Path(place) / n for n in sorted(set(names) - heard))
        yield from (Path(place) / name for name in sorted(heard | odd))
    yield from unread


def _passed_over(root: Path, others: Iterable[Path]) -> tuple[PassedOver, ...]:
    found: dict[str, list[Path]] = {"hidden": [], "not-audio": [], "beside": []}
    for path in others:
        found["hidden" if path.name.startswith(".") else "beside" if _is_audio(path.name) else "not-audio"].append(path)
    return tuple(
        PassedOver(kind=kind, count=len(paths), names=tuple(_within(root, path) for path in paths[:_NAMED]))
        for kind, paths in found.items()
        if paths
    )


def _within(root: Path, path: Path) -> str:
    return shown(path.relative_to(root).as_posix()) + ("/" if _is_folder(path) else "")


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if _is_folder(entry)]


def _is_folder(place: os.DirEntry[str] | Path) -> bool:
    try:
        return place.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}).") from None


def _is_audio(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in headers.SUFFIXES | headers.FOREIGN_SUFFIXES
