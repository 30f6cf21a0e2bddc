"""The two layouts of a user's own data: a folder of classes, and a CSV file. At most headers are read.

`list_folder` and `list_csv` list the recordings by name; `as_now` takes the known facts of their files; `read_headers`
separates the usable ones from the rest.
"""

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
MOST_FILES = 2_000_000  # below a folder; listing them takes half a minute
_DEVICES = ("/proc", "/sys", "/dev")
_SYSTEM = tuple(
    map(Path, ("/bin", "/boot", "/etc", "/home", "/lib", "/lib64", "/mnt", "/media", "/opt", "/root", "/run", "/sbin"))
) + tuple(map(Path, ("/srv", "/tmp", "/usr", "/var", "/Applications", "/Library", "/System", "/Users", "/Volumes")))
_NAMED = 3  # at most so many names of passed-over files are kept of each kind


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
class Recordings:
    """The files that a data set lists, by name only. source: its folder or CSV file.

    excluded: rows of the CSV file without a path or label.
    """

    source: Path
    files: tuple[Recording, ...]
    excluded: tuple[Excluded, ...] = ()
    notes: tuple[str, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()

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


def list_folder(root: Path) -> Recordings:
    """List ROOT/<class>/<files>, or ROOT/<train|valid|test>/<class>/<files>; files may be in subfolders.

    Raises DataError if there are no classes, or if split folders and class folders are mixed.
    """
    _refuse_system_folder(root)
    children = _folders(root)
    notes: list[str] = []
    stray = sum(1 for entry in _entries(root) if entry not in children and _is_audio(entry.name))
    if stray and not children:
        raise DataError(
            f"{root} holds {stray} audio files and no folders. "
            "Put them into one folder for each class, or list them in a CSV file with the columns path and label."
        )
    if not children:
        raise DataError(f"{root} holds no folders. A data set is a folder of classes: ROOT/<class>/clip.wav.")
    if stray:
        notes.append(f"{stray} audio files next to the class folders are not used.")

    named = {entry.name: split_name(entry.name) for entry in children}
    if all(named.values()) and "train" in named.values():
        places = [(Path(entry.path), named[entry.name] or "") for entry in children]
    elif any(named.values()) and len([n for n in named.values() if n]) > 1:
        splits, classes = [n for n in named if named[n]], [n for n in named if not named[n]]
        raise DataError(
            f"{root} mixes split folders ({', '.join(splits[:3])}) with class folders ({', '.join(classes[:3])}). "
            "Use either ROOT/train/<class>/... or ROOT/<class>/..."
        )
    else:
        places = [(root, "")]

    listed: list[Recording] = []
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
            listed += [
                Recording(clip_id=f.relative_to(root).as_posix(), path=f, label=label, written=folder.name, split=split)
                for f in files
            ]
    if not listed:
        raise DataError(
            f"{root} holds no audio files. Files ending in {', '.join(sorted(headers.SUFFIXES))} are read, "
            "in one folder for each class."
        )
    return Recordings(source=root, files=tuple(listed), notes=tuple(notes), passed_over=_passed_over(root, others))


def _refuse_system_folder(root: Path) -> None:
    if root == root.parent or any(root.is_relative_to(place) for place in _DEVICES) or root in (*_SYSTEM, Path.home()):
        raise DataError(
            f"{root} is a folder of the system or your home folder, not a data set: everything below it would be "
            "searched for audio files. Name the folder that holds the folders of classes."
        )


def list_csv(path: Path) -> Recordings:
    """List a table with the columns path and label. The columns split and player (or group) are optional.

    Paths are relative to the CSV file; every other column is kept with its clip. The delimiter is a comma, semicolon or
    tab. Raises DataError naming the faulty row or column.
    """
    text = _text(path)
    reader = csv.DictReader(io.StringIO(text), delimiter=_delimiter(path, text), strict=True)
    try:
        listed, excluded = _csv_rows(path, reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    if not listed:
        first = f" {excluded[0].name}: {excluded[0].reason}." if excluded else ""
        raise DataError(f"{path} lists no clips.{first}")
    return Recordings(source=path, files=tuple(listed), excluded=tuple(excluded))


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


def _csv_rows(path: Path, reader: csv.DictReader) -> tuple[list[Recording], list[Excluded]]:
    columns = _columns(path, reader.fieldnames or [])
    group_column = next((columns[name] for name in GROUP_COLUMNS if name in columns), None)
    used = {columns["path"], columns["label"], columns.get("split"), group_column}
    listed: list[Recording] = []
    excluded: list[Excluded] = []
    seen: dict[str, tuple[int, str]] = {}
    blank_splits: list[int] = []
    for row in reader:
        line = reader.line_num
        values = {key: (value or "").strip() for key, value in row.items() if key is not None}
        if None in row:
            raise DataError(f"{path}, line {line}: more values than columns. Put values that contain commas in quotes.")
        where, written = values[columns["path"]], values[columns["label"]]
        label = clean_label(written)
        if not where or not label:
            excluded.append(
                Excluded(name=f"line {line}", reason=f"it has no {'label' if where else 'path'}", kind="row")
            )
            continue
        place = path.parent / _expanded(where)
        first, spelled = seen.setdefault(os.path.normpath(place), (line, where))
        if first != line:
            twice = repr(where) if spelled == where else f"{spelled!r}, written {where!r} the second time"
            raise DataError(
                f"{path}, lines {first} and {line} name the same file {twice}. "
                "List each file once; in two splits, it would be both trained and tested on."
            )
        split = values[columns["split"]] if "split" in columns else ""
        if split and split_name(split) is None:
            raise DataError(f"{path}, line {line}: {split!r} is not a split. Use train, valid or test.")
        if not split:
            blank_splits.append(line)
        listed.append(
            Recording(
                clip_id=Path(where).as_posix(),
                path=place,
                label=label,
                written=written,
                split=split_name(split) or "",
                group=values[group_column] if group_column else "",
                columns={key: value for key, value in values.items() if key not in used},
            )
        )
    if "split" in columns and blank_splits and len(blank_splits) < len(listed):
        raise DataError(
            f"{path}, line {blank_splits[0]}: the split is empty here but given elsewhere. "
            "Fill in the column, or remove it and let the engine split."
        )
    return listed, excluded


def _expanded(where: str) -> Path:
    try:
        return Path(where).expanduser()
    except RuntimeError:  # `~name` of nobody: a file of that name
        return Path(where)


def _columns(path: Path, header: Iterable[str]) -> dict[str, str]:
    """Lower-case name -> the name in the file's header."""
    names = [name for name in header if name is not None]
    folded = [name.strip().casefold() for name in names]
    twice = [name for name, n in Counter(folded).items() if n > 1 and name]
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} twice.")
    columns = dict(zip(folded, names, strict=True))
    for wanted, likely in (("path", ("file", "filename", "filepath", "audio")), ("label", ("class", "target", "name"))):
        if wanted not in columns:
            near = [c for c in likely if c in columns] or nearest(wanted, folded, n=1)
            fix = f" Rename {near[0]!r} to {wanted!r}." if near else ""
            raise DataError(
                f"{path} has no column {wanted!r}; its first line names {', '.join(names) or 'nothing'}.{fix}"
            )
    return columns


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_CSV_MIB * 2**20:
        raise DataError(f"{path} is larger than {_MAX_CSV_MIB} MiB. Is this the list of clips?")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8 CSV.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from None
    if not text.strip():
        raise DataError(f"{path} is empty. Its first line must name the columns: path,label")
    if "\0" in text:
        raise DataError(f"{path} is not a text file.")
    return text


def _delimiter(path: Path, text: str) -> str:
    header = text.lstrip().splitlines()[0]
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def _audio_files(folder: Path, others: list[Path]) -> Iterator[Path]:
    """Every audio file below a folder. Hidden files are ignored; links to folders are not followed.

    Folders that cannot be listed, that are named like an audio file, or that are links are yielded too, so that they
    are reported. others: entries that are passed over are appended to it.
    """
    unread: list[Path] = []
    seen = 0
    for place, folders, names in os.walk(folder, onerror=lambda error: unread.append(Path(error.filename))):
        inside = sorted(f for f in folders if not f.startswith("."))
        odd = {f for f in inside if _is_audio(f) or (Path(place) / f).is_symlink()}
        others += (Path(place) / f for f in sorted(set(folders) - set(inside)))
        folders[:] = [f for f in inside if f not in odd]
        heard = {n for n in names if _is_audio(n)}
        others += (Path(place) / n for n in sorted(set(names) - heard))
        seen += len(heard)
        if seen + len(others) > MOST_FILES:
            raise DataError(
                f"{folder} holds more than {MOST_FILES:,} files, up to {place}: more than a data set can have. "
                "Name the folder that holds the folders of classes."
            )
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
    except OSError:  # a link to itself
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}).") from None


def _is_audio(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in headers.SUFFIXES | headers.FOREIGN_SUFFIXES
