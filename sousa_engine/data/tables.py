"""Tables of clips: CSV, TSV, JSON lines and parquet, and what their columns mean. No audio is read.

The column names are those of public data sets: AudioFolder (`file_name`), ESC-50 (`filename`, `category`, `fold`),
UrbanSound8K (`slice_file_name`, `class`, `fold`), FSD50K (`fname`, `labels`), SOUSA (`sample_id`, `rudiment_slug`,
`profile_id`, `split`).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sousa_engine.core.errors import DataError, nearest

SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".parquet"})

NAMES: Mapping[str, tuple[str, ...]] = {
    "path": (
        "path", "file_name", "filename", "fname", "slice_file_name", "file", "filepath", "file_path", "audio",
        "audio_path", "audio_file", "audio_filename", "wav", "wav_path", "clip", "recording", "sample_id", "clip_id",
    ),
    "label": (
        "label", "class", "category", "target_name", "rudiment_slug", "primary_label", "class_name", "classname",
        "label_name", "rudiment", "labels", "emotion", "genre", "species", "word", "instrument", "target", "classid",
        "class_id", "label_id",
    ),
    "split": ("split", "subset", "partition", "set"),
    "fold": ("fold", "folds", "cv_fold"),
    "group": (
        "player", "group", "speaker", "speaker_id", "subject", "subject_id", "actor", "artist", "session", "performer",
        "profile_id", "kit", "src_file", "fsid", "augmentation_group_id",
    ),
    "start": ("start", "start_s", "start_time", "begin", "begin_time_s", "onset", "onset_s"),
    "end": ("end", "end_s", "end_time", "end_time_s", "offset", "offset_s"),
}  # fmt: skip
"""Role -> the names of its column, most specific first, in the form that `folded` gives."""

NONE = "none"  # written in place of a column's name: there is no such column
_MOST_MIB = 512
MOST_ROWS = 5_000_000
_SAMPLE = 500  # rows that decide what a column holds
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it was read. lines: the number of each row in its file, for errors. A missing value is ""."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    lines: tuple[int, ...]

    @cached_property
    def by_folded(self) -> dict[str, str]:
        """Folded name -> the name in the file."""
        return {folded(name): name for name in reversed(self.columns)}

    def where(self, row: int) -> str:
        """`clips.csv, line 7`."""
        return f"{self.path}, line {self.lines[row]}"

    def column(self, role: str, asked: str = "") -> str:
        """The column of this role: the one that was asked for, or the first usual name that is there; "" if none is.

        Raises DataError if the table has no column of the name that was asked for.
        """
        if asked:
            return "" if is_none(asked) else self._named(role, asked)
        found = [self.by_folded[name] for name in NAMES[role] if name in self.by_folded]
        if role == "label":
            return self._label(found)
        return found[0] if found else ""

    def columns_of(self, role: str) -> tuple[str, ...]:
        """All columns whose name is usual for this role."""
        return tuple(self.by_folded[name] for name in NAMES[role] if name in self.by_folded)

    def sample(self, column: str) -> list[str]:
        """The first values of a column that are not empty."""
        return [value for row in self.rows[:_SAMPLE] if (value := row[column])]

    def _label(self, found: Sequence[str]) -> str:
        """The column with words, if the first one only holds numbers: `category` and not `target`."""
        words = [name for name in found if not all(map(_NUMBER.fullmatch, self.sample(name)))]
        return next(iter(words or found), "")

    def _named(self, role: str, asked: str) -> str:
        name = asked if asked in self.columns else self.by_folded.get(folded(asked), "")
        if not name:
            near = nearest(folded(asked), self.by_folded, n=1)
            mean = f" Did you mean {self.by_folded[near[0]]!r}?" if near else ""
            raise DataError(
                f"{self.path} has no column {asked!r} (data.{role}_column); it has {', '.join(self.columns)}.{mean}"
            )
        return name


def is_none(asked: str) -> bool:
    """Whether a field says that there is no such table or column."""
    return asked.strip().casefold() == NONE


def folded(name: str) -> str:
    """A column's name in the form that is compared: `Begin Time (s)` is `begin_time_s`."""
    return re.sub(r"[^\w]+", "_", name.strip().casefold()).strip("_")


def read(path: Path, *, most_mib: int = _MOST_MIB) -> Table:
    """Read a table. Raises DataError that names the file, and the line where one is to blame."""
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path} is not a regular file.")
    if facts.st_size > most_mib * 2**20:
        raise DataError(f"{path} is larger than {most_mib} MiB. Is this the list of clips?")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path)
    text = _text(path)
    return _json_lines(path, text) if suffix == ".jsonl" else _delimited(path, text)


def _delimited(path: Path, text: str) -> Table:
    reader = csv.reader(io.StringIO(text), delimiter=_delimiter(path, text), strict=True)
    header: list[str] = []
    rows, lines = [], []
    try:
        for values in reader:
            if not values:
                continue
            if not header:
                header = [value.strip() for value in values]
                _check_header(path, header)
                continue
            if len(values) > len(header) and any(values[len(header) :]):
                raise DataError(
                    f"{path}, line {reader.line_num}: more values than columns. Put values that contain "
                    "the delimiter in quotes."
                )
            cells = [value.strip() for value in values[: len(header)]]
            rows.append(dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from None
    return Table(path=path, columns=tuple(header), rows=tuple(rows), lines=tuple(lines))


def _json_lines(path: Path, text: str) -> Table:
    found: list[tuple[int, dict[str, Any]]] = []
    for line, written in enumerate(text.splitlines(), 1):
        if not written.strip():
            continue
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {line}: this is not JSON.") from None
        if not isinstance(value, dict):
            raise DataError(f'{path}, line {line}: each line must be an object, such as {{"file_name": ...}}.')
        found.append((line, value))
    columns = tuple(dict.fromkeys(name for _, value in found for name in value))
    _check_header(path, columns)
    return Table(
        path=path,
        columns=columns,
        rows=tuple({name: _cell(value.get(name)) for name in columns} for _, value in found),
        lines=tuple(line for line, _ in found),
    )


def _parquet(path: Path) -> Table:
    """All columns but those that hold audio bytes."""
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]
        _refuse_large(path, file.metadata, names)
        columns = {name: list(map(_cell, file.read([name]).column(0).to_pylist())) for name in names}
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}.") from None
    _check_header(path, names)
    count = file.metadata.num_rows
    rows = tuple({name: columns[name][i] for name in names} for i in range(count))
    return Table(path=path, columns=tuple(names), rows=rows, lines=tuple(range(1, count + 1)))


def _refuse_large(path: Path, facts: Any, names: Collection[str]) -> None:
    """Refuse columns that are too large when they are unpacked."""
    size = 0
    for i in range(facts.num_row_groups):
        group = facts.row_group(i)
        chunks = (group.column(j) for j in range(group.num_columns))
        size += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)
    if size > _MOST_MIB * 2**20 or facts.num_rows > MOST_ROWS:
        raise DataError(
            f"{path} unpacks to {facts.num_rows:,} rows of {size / 2**20:,.0f} MiB; at most {MOST_ROWS:,} rows of "
            f"{_MOST_MIB} MiB are read."
        )


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, (list, tuple)):
        return ",".join(map(_cell, value))
    return str(value).strip()


def _check_header(path: Path, header: Iterable[str]) -> None:
    names = [folded(name) for name in header]
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} twice.")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}).") from None
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8 CSV.") from None
    if not text.strip():
        raise DataError(f"{path} is empty. Its first line must name the columns: path,label")
    if "\0" in text:
        raise DataError(f"{path} is not a text file.")
    return text


def _delimiter(path: Path, text: str) -> str:
    header = text.lstrip().splitlines()[0]
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def in_folder(folder: Path) -> Iterator[Path]:
    """The files directly in a folder that may be tables, by name; none if the folder cannot be listed."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    except OSError:
        return
    yield from (path for path in found if path.is_file())
