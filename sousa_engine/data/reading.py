"""What a folder or a table of recordings is: its clips, and where labels, splits and groups come from.

One recognizer serves `scan`, `train`, sweeps and the page Data. It goes by names and tables alone and opens no audio.
What it found stands in a `Reading`, with evidence; the `data.*` fields in `Reading.fields` would force the same. It
refuses what can be read in two ways, and names the fields that decide it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError
from sousa_engine.data import headers, levels, survey, tables
from sousa_engine.data.clips import Excluded
from sousa_engine.data.layouts import PassedOver, Reading, Recording, Recordings, clean_label, shown
from sousa_engine.data.splits import split_name, split_names
from sousa_engine.data.survey import Survey
from sousa_engine.data.tables import Table

_ENOUGH = 0.5  # share of a table's rows that name an audio file here, so that the table is about these files
_ASIDE = ("meta", "metadata", "labels", "ground_truth", "annotations", "data")
_BESIDE = ("audio", "clips", "wav", "wavs", "sounds")
_SPEAKER = re.compile(r"([0-9a-z]+)_nohash_\d+", re.IGNORECASE)  # Speech Commands' file names
_SEVERAL = 0.05  # share of clips with several labels, from which on a column is not one of classes
_MOST_MIB_UNASKED = 64  # of a table that nobody named: larger ones hold features
_NAMED = 3


def read(path: Path, config: DataConfig) -> Recordings:
    """The files that a folder or a table lists, by name only, with the reading of it. path: it is there.

    Raises DataError for what cannot be read, or not in one way; it says what would fit.
    """
    if path.is_dir():
        return _folder(path, config)
    table = tables.read(path)
    return _from_tables([table], _beside(path.parent), config, source=path)


def _folder(root: Path, config: DataConfig) -> Recordings:
    found = survey.look(root)
    if not tables.is_none(config.table) and config.level is None:
        if read := _tables_of(found, config):
            return _from_tables(read, found, config, source=root)
    elif config.level is not None and config.table and not tables.is_none(config.table):
        raise DataError("data.table and data.level exclude each other: classes come from the one or from the other.")
    return _from_folders(found, config)


# Tables


def _tables_of(found: Survey, config: DataConfig) -> list[Table]:
    """The tables that list these audio files; several if each lists files of its own, as one for each split does."""
    if config.table:
        return [tables.read(_asked_table(found.root, config.table))]
    paths = list(found.tables)
    if not _has_own_folders(found):
        above = found.root.parent
        paths += [path for place in (above, *(above / name for name in _ASIDE)) for path in tables.in_folder(place)]
    good: list[tuple[Table, set[Path]]] = []
    for path in dict.fromkeys(paths):
        try:
            table = tables.read(path, most_mib=_MOST_MIB_UNASKED)
        except DataError:
            continue  # a table of something else; one that was asked for is read above, and says why
        if not table.rows or not table.column("label", config.label_column if _has(table, config.label_column) else ""):
            continue
        column, share, files = _path_column(table, found, "")
        if column and share >= _ENOUGH:
            good.append((table, files))
    return _chosen(good, len(found.audio))


def _has(table: Table, name: str) -> bool:
    return bool(name) and (name in table.columns or tables.folded(name) in table.by_folded)


def _has_own_folders(found: Survey) -> bool:
    """Whether the folder has a table of its own, or is what a user would name first: then none is searched above it."""
    return bool(found.tables) or survey.is_too_general(found.root.parent)


def _chosen(good: Sequence[tuple[Table, set[Path]]], audio: int) -> list[Table]:
    """The table that covers most files and says most about them, with all others that list other files only."""
    chosen: list[Table] = []
    covered: set[Path] = set()
    for table, files in sorted(good, key=lambda one: (-len(one[1]), -_says(one[0]), len(one[0].path.parts))):
        if not files & covered and (not chosen or (table.columns_of("label") and _alike(table, chosen[0]))):
            chosen.append(table)
            covered |= files
    return chosen if len(covered) >= _ENOUGH * audio else []


def _says(table: Table) -> int:
    return sum(bool(table.columns_of(role)) for role in ("split", "fold", "group"))


def _alike(table: Table, other: Table) -> bool:
    return table.column("label") == other.column("label")


def _asked_table(root: Path, asked: str) -> Path:
    for place in (root / asked, root.parent / asked):
        if place.is_file():
            return place
    raise DataError(f"There is no table {asked!r} (data.table) in {root}.")


def _beside(folder: Path) -> Survey:
    """The folder of a table that was named itself, or the one above it if that holds the audio (meta/esc50.csv)."""
    if survey.is_too_general(folder):
        return Survey(root=folder, audio=())
    found = survey.look(folder)
    if not found.audio and folder.name.casefold() in _ASIDE and not survey.is_too_general(folder.parent):
        return survey.look(folder.parent)
    return found


def _path_column(table: Table, found: Survey, asked: str) -> tuple[str, float, set[Path]]:
    """(the column that names the files, the share of its values that are there, those files)."""
    if asked:
        name = table.column("path", asked)
        return name, 1.0, set()
    best: tuple[str, float, set[Path]] = ("", 0.0, set())
    place = _Places(table.path.parent, found)
    for name in table.columns_of("path"):
        values = [row[name] for row in table.rows if row[name]]
        files = [path for value in values if (path := place.find(value, guess=True))]
        share = len(files) / len(values) if values else 0.0
        if share > best[1]:
            best = name, share, set(files)
    return best


class _Places:
    """Where the files that a table names can be: as written, from the table, from the root, in audio/, by name."""

    def __init__(self, of_table: Path, found: Survey):
        self._bases = tuple(
            dict.fromkeys(
                [of_table, found.root, of_table.parent]
                + [base / name for base in (of_table, found.root, of_table.parent) for name in _BESIDE]
            )
        )
        self._found = found
        self._known = set(found.audio)

    def find(self, written: str, *, guess: bool = False) -> Path | None:
        """The file, or None. guess: only among the files that were surveyed, without a look at the disk."""
        name = written.replace("\\", "/")
        for spelled in dict.fromkeys((written, name)):
            for base in self._bases:
                if (path := _normal(base / spelled)) in self._known or (not guess and _is_file(path)):
                    return path
        same = self._found.by_name.get(PurePosixPath(name).name, [])
        if len(same) > 1:
            tail = PurePosixPath(name).parts
            same = [path for path in same if path.parts[-len(tail) :] == tail]
        return same[0] if len(same) == 1 else None

    def likely(self, written: str) -> Path:
        """Where the file would be: for a sentence about one that is not there."""
        return _normal(self._bases[0] / written)


def _normal(path: Path) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError:  # `~name` of nobody: a file of that name
        pass
    return Path(os.path.normpath(path))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _from_tables(found: Sequence[Table], place: Survey, config: DataConfig, *, source: Path) -> Recordings:
    main = found[0]
    read = [_Columns.of(table, place, config) for table in found]
    split_of = _split_of_tables(found)
    rows: list[Recording] = []
    excluded: list[Excluded] = []
    seen: dict[str, tuple[Table, int, str]] = {}
    for one in read:
        _read_rows(one, place, source, split_of.get(one.table.path, ""), rows, excluded, seen)
    if not rows:
        first = f" {excluded[0].name}: {excluded[0].reason}." if excluded else ""
        raise DataError(f"{main.path} lists no clips.{first}")
    columns = read[0]
    splits = f"the column {columns.split}" if columns.split else "the names of the tables" if split_of else ""
    if not any(row.split for row in rows):
        splits = ""
        if by_folder := _split_folders(rows, place.root):
            rows = [replace(row, split=by_folder[row.path]) for row in rows]
            splits = "the folders of the files"
    name = _within(source if source.is_dir() else source.parent, main.path)
    evidence = [f"The table {name} lists {len(rows):,} files that are here." if source.is_dir() else ""]
    unlisted = len(set(place.audio) - {row.path for row in rows})
    if source.is_dir() and unlisted:
        evidence.append(f"{unlisted:,} audio files are in no row of it and are not used.")
    reading = Reading(
        source=source,
        way="table",
        labels=f"the column {columns.label}",
        splits=splits,
        groups=f"the column {columns.group}" if columns.group and any(row.group for row in rows) else "",
        folds=f"the column {columns.fold}" if columns.fold else "",
        table=name,
        columns=columns.by_role(),
        choices=main.columns,
        evidence=tuple(filter(None, evidence)),
        fields={"data.table": name} | {f"data.{role}_column": column for role, column in columns.by_role().items()},
    )
    notes = tuple(evidence[1:]) + _helper_notes(place)
    return Recordings(
        source=source, files=tuple(rows), excluded=tuple(excluded), notes=notes, passed_over=(), reading=reading
    )


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns of a table by what they are; "" where there is none."""

    table: Table
    path: str
    label: str
    split: str
    fold: str
    group: str

    @classmethod
    def of(cls, table: Table, place: Survey, config: DataConfig) -> _Columns:
        path = _path_column(table, place, config.path_column)[0] or next(iter(table.columns_of("path")), "")
        label = table.column("label", config.label_column)
        for role, column in (("path", path), ("label", label)):
            if not column:
                raise DataError(
                    f"{table.path} has no column that names the {'file' if role == 'path' else 'class'} of each clip; "
                    f"it has {levels.some(table.columns, 8)}. Name it: data.{role}_column=..., or rename it to "
                    f"{role!r}."
                )
        _refuse_several(table, label)
        split = table.column("split", config.split_column)
        if split and not config.split_column and tables.folded(split) != "split":
            values = set(table.sample(split))
            split = split if values and all(map(split_name, values)) else ""
        return cls(
            table=table, path=path, label=label, split=split, fold=table.column("fold"),
            group=_group_column(table, config.group_column, has_splits=bool(split)),
        )  # fmt: skip

    def by_role(self) -> dict[str, str]:
        found = {"path": self.path, "label": self.label, "split": self.split, "group": self.group}
        return {role: column for role, column in found.items() if column}


def _refuse_several(table: Table, label: str) -> None:
    """Refuse a column whose values are lists of labels: each list would become a class."""
    values = table.sample(label)
    single = {value for value in values if "," not in value}
    lists = [value for value in values if "," in value and any(part.strip() in single for part in value.split(","))]
    if len(lists) > _SEVERAL * len(values):
        raise DataError(
            f"{table.path}: the column {label!r} holds several labels for a clip, such as {lists[0]!r}. Each clip "
            "needs one: write it into another column, and name that with data.label_column."
        )


def _group_column(table: Table, asked: str, *, has_splits: bool) -> str:
    """The column of groups: folds where the table has them, since they keep apart what belongs together."""
    if asked:
        return table.column("group", asked)
    for name in (*table.columns_of("fold"), *table.columns_of("group")):
        values = [row[name] for row in table.rows if row[name]]
        if (1 if has_splits else 2) <= len(set(values)) < len(values):
            return name
    return ""


def _read_rows(
    columns: _Columns,
    place: Survey,
    source: Path,
    split: str,
    rows: list[Recording],
    excluded: list[Excluded],
    seen: dict[str, tuple[Table, int, str]],
) -> None:
    """Append the clips of a table, and its rows without a path or label. seen: files -> (row, as written there)."""
    table, places = columns.table, _Places(columns.table.path.parent, place)
    used = {columns.path, columns.label, columns.split, columns.group}
    blank: list[int] = []
    given = 0
    for i, row in enumerate(table.rows):
        where, written = row[columns.path], row[columns.label]
        label = clean_label(written)
        if not where or not label:
            reason = f"it has no {'label' if where else 'path'}"
            excluded.append(Excluded(name=f"line {table.lines[i]}", reason=reason, kind="row"))
            continue
        path = places.find(where) or places.likely(where)
        _refuse_twice(table, i, where, path, seen)
        own = row[columns.split] if columns.split else ""
        if own and split_name(own) is None:
            raise DataError(f"{table.where(i)}: {own!r} is not a split. Use train, valid or test.")
        if own:
            given += 1
        else:
            blank.append(i)
        rows.append(
            Recording(
                clip_id=_clip_id(source, path, where),
                path=path,
                label=label,
                written=written,
                split=split_name(own) or split,
                group=row[columns.group] if columns.group else "",
                columns={name: value for name, value in row.items() if name not in used},
            )
        )
    if given and blank:
        raise DataError(
            f"{table.where(blank[0])}: the split is empty here but given elsewhere. "
            "Fill in the column, or remove it and let the engine split."
        )


def _refuse_twice(table: Table, row: int, where: str, path: Path, seen: dict[str, tuple[Table, int, str]]) -> None:
    first, at, spelled = seen.setdefault(os.path.realpath(path), (table, row, where))
    if first is table and at == row:
        return
    twice = repr(where) if spelled == where else f"{spelled!r}, written {where!r} the second time"
    places = (
        f"{table.path}, lines {first.lines[at]} and {table.lines[row]} name"
        if first is table
        else f"{first.where(at)} and {table.where(row)} name"
    )
    raise DataError(
        f"{places} the same file {twice}. List each file once; in two splits, it would be both trained and tested on."
    )


def _clip_id(source: Path, path: Path, written: str) -> str:
    if source.is_dir() and path.is_relative_to(source):
        return path.relative_to(source).as_posix()
    return PurePosixPath(written.replace("\\", "/")).as_posix()


def _split_of_tables(found: Sequence[Table]) -> dict[Path, str]:
    """The split of each table's files, if the tables are named after splits (or lie in folders that are)."""
    if len(found) < 2:
        return {}
    for name in (_stem, _folder_name):
        names = [name(table) for table in found]
        if len(set(names)) == len(names) and (splits := split_names(names)):
            return {table.path: splits[name(table)] for table in found}
    return {}


def _stem(table: Table) -> str:
    return table.path.stem


def _folder_name(table: Table) -> str:
    return table.path.parent.name


def _split_folders(rows: Sequence[Recording], root: Path) -> dict[Path, str]:
    """File -> split, if a level of the folders that hold the files is named after splits."""
    parts = {row.path: row.path.relative_to(root).parts[:-1] for row in rows if row.path.is_relative_to(root)}
    if len(parts) != len(rows):
        return {}
    for at in range(min(map(len, parts.values()), default=0)):
        if splits := split_names({found[at] for found in parts.values()}):
            return {path: splits[found[at]] for path, found in parts.items()}
    return {}


# Folders


def _from_folders(found: Survey, config: DataConfig) -> Recordings:
    root = found.root
    if not found.audio:
        raise _no_audio(found)
    read = levels.read(str(root), found.folders, config.level)
    if not read.classes:
        raise _flat(found, read)
    files: list[Recording] = []
    beside: list[Path] = []
    grouped = not tables.is_none(config.group_column)
    group_of = _speaker if grouped and _are_speakers(found.audio) else None
    for path, parts in zip(found.audio, found.folders, strict=True):
        if len(parts) < read.classes or (read.split and len(parts) < read.split):
            beside.append(path)
            continue
        written = parts[read.classes - 1]
        group = parts[read.group - 1] if grouped and read.group and len(parts) >= read.group else ""
        files.append(
            Recording(
                clip_id=path.relative_to(root).as_posix(),
                path=path,
                label=clean_label(written),
                written=written,
                split=read.splits[parts[read.split - 1]] if read.split else "",
                group=group or (group_of(path) if group_of else ""),
            )
        )
    lists = _splits_of_lists(found) if not read.split else {}
    if lists:
        files = [replace(one, split=lists.get(one.path, "train")) for one in files]
    groups = ""
    if any(one.group for one in files):
        groups = f"the folders at level {read.group}" if read.group else "the speakers in the names of the files"
    reading = Reading(
        source=root,
        way="lists" if lists else "folders",
        labels="the folders" if read.classes == 1 else f"the folders at level {read.classes}",
        splits="the lists of files" if lists else f"the folders at level {read.split}" if read.split else "",
        groups=groups,
        all_levels=read.all,
        fields={"data.level": read.classes, "data.table": tables.NONE},
    )
    return Recordings(
        source=root,
        files=tuple(files),
        notes=tuple(_folder_notes(found, read, beside)) + _helper_notes(found),
        passed_over=_passed_over(root, (*found.others, *beside)),
        reading=reading,
    )


def _no_audio(found: Survey) -> DataError:
    if found.tables:
        return DataError(
            f"{found.root} holds no audio files; it holds {levels.some([path.name for path in found.tables])}. "
            "Name the folder that holds both, or the table itself."
        )
    if not any(path.is_dir() for path in found.root.iterdir() if not path.name.startswith(".")):
        return DataError(f"{found.root} holds no folders. A data set is a folder of classes: ROOT/<class>/clip.wav.")
    return DataError(
        f"{found.root} holds no audio files. Files ending in {', '.join(sorted(headers.SUFFIXES))} are read, "
        "in one folder for each class."
    )


def _flat(found: Survey, read: levels.Levels) -> DataError:
    """Audio without folders of classes."""
    where = "in split folders without folders of classes" if read.split else "and no folders of classes"
    seen = [_within(found.root, path) for path in found.tables]
    table = (
        f"It holds {levels.some(seen)}, but no column there names these files and their classes; say which do: "
        "data.table, data.path_column, data.label_column."
        if seen
        else "Put them into one folder for each class, or list them in a CSV file with the columns path and label."
    )
    return DataError(f"{found.root} holds {len(found.audio):,} audio files {where}. {table}")


def _are_speakers(audio: Sequence[Path]) -> bool:
    sample = audio[:200]
    return sum(bool(_SPEAKER.fullmatch(path.stem)) for path in sample) > _ENOUGH * len(sample)


def _speaker(path: Path) -> str:
    found = _SPEAKER.fullmatch(path.stem)
    return found[1] if found else ""


def _splits_of_lists(found: Survey) -> dict[Path, str]:
    """File -> split, from lists such as validation_list.txt, whose lines name files; {} if there are none."""
    splits: dict[Path, str] = {}
    known = set(found.audio)
    for path in found.lists:
        if path.parent != found.root or not (names := split_names([path.stem.replace("list", "")], alone=True)):
            continue
        if not _is_file(path) or path.stat().st_size > _MOST_MIB_UNASKED * 2**20:
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError):
            continue
        files = [_normal(found.root / line.strip().replace("\\", "/")) for line in lines if line.strip()]
        here = [file for file in files if file in known]
        if len(here) < _ENOUGH * len(files):
            continue
        (split,) = names.values()
        twice = next((file for file in here if splits.get(file, split) != split), None)
        if twice:
            raise DataError(f"{_within(found.root, twice)} is in two lists of splits, the second is {path.name}.")
        splits |= dict.fromkeys(here, split)
    return splits


def _folder_notes(found: Survey, read: levels.Levels, beside: Sequence[Path]) -> list[str]:
    notes = []
    if beside:
        notes.append(f"{len(beside)} audio files next to the class folders are not used.")
    with_audio = {(found.root, *parts)[: read.classes + 1] for parts in found.folders}
    places = {(found.root, *parts)[: read.classes] for parts in found.folders if len(parts) >= read.classes}
    for place in sorted(places):
        folder = Path(*place)
        for inside in sorted(folder.iterdir()):
            is_class = inside.is_dir() and not inside.name.startswith(".") and not survey.is_helper(inside.name)
            if is_class and (*place, inside.name) not in with_audio and inside.name.casefold() not in _ASIDE:
                notes.append(f"The folder {_within(found.root, inside).rstrip('/')} holds no audio.")
    return notes


def _helper_notes(found: Survey) -> tuple[str, ...]:
    return tuple(
        f"{name} is no class: its {count} audio files are noise and are not used."
        if name.endswith(survey.NOISE)
        else f"{name} is passed over."
        for name, count in found.helpers.items()
        if count
    )


def _passed_over(root: Path, others: Iterable[Path]) -> tuple[PassedOver, ...]:
    found: dict[str, list[Path]] = {"hidden": [], "not-audio": [], "beside": []}
    for path in others:
        kind = "hidden" if path.name.startswith(".") else "beside" if survey.is_audio(path.name) else "not-audio"
        found[kind].append(path)
    return tuple(
        PassedOver(kind=kind, count=len(paths), names=tuple(_within(root, path) for path in paths[:_NAMED]))
        for kind, paths in found.items()
        if paths
    )


def _within(root: Path, path: Path) -> str:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else os.path.relpath(path, root)
    return shown(name) + ("/" if _is_folder(path) else "")


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to itself
        return False
