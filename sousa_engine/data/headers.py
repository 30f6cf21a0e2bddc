"""Open an audio file, read its header, and say why a file cannot be used. Nothing is decoded."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sousa_engine.core.errors import DataError
from sousa_engine.data import mp3

if TYPE_CHECKING:
    from soundfile import SoundFile

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
"""Suffixes of the files that are read."""

FOREIGN_SUFFIXES = frozenset({".m4a", ".aac", ".wma", ".mp4", ".amr", ".ape"})
"""Suffixes of audio files that libsndfile cannot read; they are reported."""

SHORTEST_S = 0.005
"""Anything shorter is a click of no use; data.shortest_s leaves out more."""

RATES_HZ = (2_000, 384_000)
"""Lowest and highest sample rate that is accepted."""

MOST_CHANNELS = 64

FIX = "export it again, or remove it"


class Unusable(DataError):
    """A file that cannot be a clip. kind: the reason in one word; str(error): a clause without the file's name."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class AudioHeader:
    """The facts in a file's header, and the size and time of the file."""

    duration_s: float
    sample_rate_hz: int
    channels: int
    size: int
    mtime_ns: int


def file_facts(path: Path) -> os.stat_result:
    """The file system's facts about a file that may hold audio. Raises Unusable; opens nothing."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise Unusable("name", "its name is not UTF-8 text; rename it") from None
    try:
        facts = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise Unusable("missing", f"it is a link to {str(path.readlink())!r}, which does not exist") from None
        raise Unusable("missing", "there is no such file") from None
    except OSError as error:
        kind = "link" if error.errno == errno.ELOOP else "permission" if error.errno == errno.EACCES else "missing"
        why = "a link that leads back to itself; remove it" if kind == "link" else error.strerror
        raise Unusable(kind, f"it cannot be opened ({why})") from None
    except ValueError as error:  # a NUL in a path from a table
        raise Unusable("missing", f"it cannot be opened ({error})") from None
    if not os.access(path, os.R_OK):
        raise Unusable("permission", f"it may not be read (mode {facts.st_mode & 0o777:03o}); change its permissions")
    if stat.S_ISDIR(facts.st_mode) and path.is_symlink():
        raise Unusable("link", "it is a link to a folder, which is not followed; replace it with the folder")
    if not stat.S_ISREG(facts.st_mode):
        what = " but a folder" if stat.S_ISDIR(facts.st_mode) else ""
        raise Unusable("no-file", f"it is not a regular file{what}; remove or rename it")
    if facts.st_size == 0:
        raise Unusable("empty", f"the file is empty (0 bytes); {FIX}")
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise Unusable("format", f"it is {path.suffix}, which cannot be read; convert it to wav or flac")
    return facts


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SoundFile]:
    """An audio file open for reading, whose `frames` is no estimate. Raises LibsndfileError, OSError."""
    import soundfile

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(soundfile.SoundFile(str(path)))
        if file.format == "MP3" and (counted := mp3.true_length(path, file.frames)):
            file = stack.enter_context(soundfile.SoundFile(stack.enter_context(counted)))
        yield file


def read_header(path: Path) -> AudioHeader:
    """Read a file's header. Raises Unusable, with a reason that does not name the file."""
    import soundfile

    facts = file_facts(path)
    try:
        with opened(path) as file:
            frames, rate_hz, channels = file.frames, file.samplerate, file.channels
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error.error_string.rstrip(".")) from None
    check_header(rate_hz, channels)
    if frames <= 0:
        raise Unusable(
            "no-samples", f"its header is followed by no samples (the file has {facts.st_size:,} bytes); {FIX}"
        )
    if frames / rate_hz < SHORTEST_S:
        raise too_short(frames, rate_hz)
    return AudioHeader(
        duration_s=frames / rate_hz,
        sample_rate_hz=rate_hz,
        channels=channels,
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
    )


def check_header(rate_hz: int, channels: int) -> None:
    """Raise Unusable for an implausible sample rate or number of channels."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise Unusable(
            "rate",
            f"its header claims {rate_hz:,} Hz; rates from {RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz are accepted; "
            "export it at its true rate",
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise Unusable("channels", f"its header claims {channels:,} channels; at most {MOST_CHANNELS} are read; {FIX}")


def too_short(frames: int, rate_hz: int) -> Unusable:
    """The error for a recording of so many frames."""
    held = "1 sample" if frames == 1 else f"{frames:,} samples"
    return Unusable(
        "short",
        f"it is {frames / rate_hz:.3g} s long ({held}), shorter than {SHORTEST_S} s; record it longer, or remove it",
    )


def _unreadable(path: Path, said: str) -> Unusable:
    """Why libsndfile cannot open a file. Its own message (`said`) is the last resort, since it contains no values."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        return Unusable("permission", f"it cannot be opened ({error.strerror})")
    if head[:4] == b"RIFF" and head[12:16] == b"fmt " and len(head) >= 28:
        channels, rate_hz = int.from_bytes(head[22:24], "little"), int.from_bytes(head[24:28], "little")
        try:
            check_header(rate_hz, channels)
        except Unusable as error:
            return error
    if head and all(byte >= 32 or byte in b"\t\n\r\f" for byte in head):
        return Unusable("text", "it is not audio: it holds text; replace or remove it")
    # libsndfile's message for a file that is not an mp3; we know that it is a regular file
    if "not a regular file" in said:
        said = "Format not recognised"
    return Unusable("unreadable", f"it is not readable as audio ({said}); {FIX}")
