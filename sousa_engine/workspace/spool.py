"""A run's append-only metric file, and reading it back. The trainer writes it, the supervisor ingests it.

One JSON object per line. A line is handed to the kernel in one write and survives the trainer from then on; `sync`
makes it survive the machine. A spool ends with its last newline (`end_of`): what follows is incomplete or still being
written. Readers ignore it, and the next writer replaces it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from sousa_engine.core.records import MOST_MS, MOST_WHOLE, Event, Prediction, Progress
from sousa_engine.workspace import run_files

_CHUNK_BYTES = 4 << 20
_LONGEST_LINE = 64 << 20  # bytes; a step of a network with 100,000 modules has a tenth of them
_MOST_PREDICTION_BYTES = 1 << 30


class SpoolPoint(NamedTuple):
    """One metric value on its way from spool to store: a tuple, because there are millions of them."""

    metric: str
    step: int
    value: float
    epoch: int | None
    n: int | None
    at_ms: int


@dataclass(frozen=True, kw_only=True)
class SpoolBatch:
    """The entries between the bytes `start` and `end` of a spool. The store ingests each byte exactly once."""

    start: int
    end: int
    points: Sequence[SpoolPoint] = ()
    progress: Progress | None = None
    events: Sequence[Event] = ()
    facts: Mapping[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        return self.start == self.end


class SpoolWriter:
    """Appends to one spool. The keeper's lock ensures one writer per file."""

    def __init__(self, path: Path, clock_ms: Callable[[], int] | None = None):
        self._clock_ms = clock_ms or (lambda: time.time_ns() // 1_000_000)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise run_files.Irregular(errno.EINVAL, "not a regular file", str(path))
        self._size = _end_of_last_line(self._file)
        os.ftruncate(self._file, self._size)  # an incomplete line of a killed attempt

    def metrics(self, step: int, values: Mapping[str, float], epoch: int | None = None, n: int | None = None) -> None:
        """Values after optimiser step `step` (from 1). nan and inf are kept; None is left out."""
        m = {name: _number(value) for name, value in values.items() if value is not None}
        self._append({"k": "metrics", "t": self._clock_ms(), "step": step, "epoch": epoch, "n": n, "m": m})

    def progress(self, progress: Progress) -> None:
        values = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in asdict(progress).items()}
        self._append({"k": "progress", "t": self._clock_ms(), **values})

    def event(self, kind: str, message: str) -> None:
        self._append({"k": "event", "t": self._clock_ms(), "kind": kind, "message": message})

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Facts of the run (versions, parameters, counts). Later ones override earlier ones."""
        self._append({"k": "facts", "t": self._clock_ms(), "facts": _plain(facts)})

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _append(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = text.encode("utf-8", "replace") + b"\n"  # replace: file names may have undecodable bytes
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._size)  # disk full in mid-line: the next line must not continue it
            raise
        self._size += written


def end_of(path: Path) -> int:
    """Bytes of the complete lines of a spool: where the next writer goes on. 0 if there is no such file."""
    try:
        with run_files.open_file(path) as file:
            return _end_of_last_line(file.fileno())
    except FileNotFoundError:
        return 0


def read_spool(path: Path, offset: int, max_bytes: int = _CHUNK_BYTES) -> tuple[list[dict[str, Any]], int]:
    """Complete lines from byte `offset` on, and the offset after them; about `max_bytes` or one line per call at most.

    A missing file has no entries. An incomplete last line is left for later. A complete line that is not a JSON object
    is returned as {"k": "unreadable", "offset": ..., "length": ...}: reported, not dropped.
    """
    try:
        with run_files.open_file(path) as file:
            file.seek(offset)
            block = file.read(max_bytes)
            while b"\n" not in block[-max_bytes:] and len(block) < _LONGEST_LINE and (more := file.read(max_bytes)):
                block += more
    except FileNotFoundError:
        return [], offset
    whole = block.rfind(b"\n") + 1
    if not whole and len(block) >= _LONGEST_LINE:
        return [{"k": "unreadable", "offset": offset, "length": len(block)}], offset + len(block)
    entries: list[dict[str, Any]] = []
    at = offset
    for line in block[:whole].split(b"\n")[:-1]:
        entries.append(_entry(line, at))
        at += len(line) + 1
    return entries, offset + whole


def read_batch(path: Path, offset: int, max_bytes: int = _CHUNK_BYTES) -> SpoolBatch:
    """`read_spool`, sorted by kind: every point and event, the newest progress, all facts merged."""
    entries, end = read_spool(path, offset, max_bytes)
    points: list[SpoolPoint] = []
    events: list[Event] = []
    facts: dict[str, Any] = {}
    progress: Progress | None = None
    now = 0
    for entry in entries:
        kind = entry["k"]
        try:
            now = _moment(entry.get("t", now))
            if kind == "metrics":
                step, epoch, n = (
                    _whole(entry["step"]),
                    _whole_or_none(entry.get("epoch")),
                    _whole_or_none(entry.get("n")),
                )
                points += [SpoolPoint(_text(m), step, float(v), epoch, n, now) for m, v in entry["m"].items()]
            elif kind == "progress":
                progress = Progress.read({k: v for k, v in entry.items() if k not in ("k", "t")})
            elif kind == "event":
                events.append(Event(at_ms=now, kind=_text(entry["kind"]), message=_text(entry["message"])))
            elif kind == "facts":
                facts.update(_facts(entry["facts"]))
            elif kind == "unreadable":
                events.append(_unreadable(now, entry["offset"], entry["length"], path))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            # Values that the store cannot take must not reach it: one bad line would block the run forever.
            why = f"Ignored a {_text(kind)[:60]} line of {path.name}: {_text(repr(error))[:300]}"
            events.append(Event(at_ms=now, kind="unreadable", message=why))
    return SpoolBatch(start=offset, end=end, points=points, progress=progress, events=events, facts=facts or None)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write the predictions of all splits, one JSON object per line; the file appears complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for prediction in predictions:
                file.write(json.dumps(_plain(asdict(prediction)), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, half of them would take the room to report it
        raise


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """All predictions of a run; none if the file is missing. Raises ValueError naming the invalid line."""
    try:
        text = run_files.read_bytes(path, _MOST_PREDICTION_BYTES).decode("utf-8")
    except FileNotFoundError:
        return ()
    except run_files.Irregular as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not text:
        return ()
    found: list[Prediction] = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            values: dict[str, Any] = json.loads(line)
            values.setdefault("content", "")
            values |= {key: _text(values[key]) for key in ("clip_id", "split", "label", "predicted", "content")}
            values |= {key: float(values[key]) for key in ("probability", "label_probability")}
            found.append(Prediction(**values))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"Line {number} of {path} is not a prediction: {error}") from None
    return tuple(found)


def _entry(line: bytes, at: int) -> dict[str, Any]:
    try:
        entry = json.loads(line, parse_constant=_no_json)
    except (ValueError, RecursionError):
        entry = None
    if isinstance(entry, dict) and isinstance(entry.get("k"), str):
        return entry
    return {"k": "unreadable", "offset": at, "length": len(line)}


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _whole(value: Any) -> int:
    if not isinstance(value, int) or abs(value) >= MOST_WHOLE:
        raise TypeError(f"{str(value)[:40]} is not a whole number")
    return value


def _moment(value: Any) -> int:
    if abs(_whole(value)) > MOST_MS:
        raise ValueError(f"{value} ms is in no calendar")
    return value


def _facts(value: Any) -> dict[str, Any]:
    """Facts as a database can hold them. The store itself keeps "earlier"."""
    found = _storable(value)
    if not isinstance(found, dict) or "earlier" in found:
        raise TypeError("these are not facts of a trainer")
    return found


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return _whole(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not JSON")
    if isinstance(value, dict):
        return {_text(key): _storable(one) for key, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value


def _whole_or_none(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value.encode("utf-8", "replace").decode()  # JSON can spell half a character; a database cannot hold it


def _unreadable(at_ms: int, offset: int, length: int, path: Path) -> Event:
    message = f"Ignored {length} unreadable bytes of {path.name} at {offset}."
    return Event(at_ms=at_ms, kind="unreadable", message=message)


def _number(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _plain(value: Any) -> Any:
    """JSON has no nan or inf: they are written as text, as in metrics."""
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _end_of_last_line(file: int) -> int:
    """Bytes up to and including the last newline."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - 65536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
