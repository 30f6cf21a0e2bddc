"""What a file's header says, and why a file cannot be used. Nothing is decoded."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sousa_engine.core.errors import DataError

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
"""Endings of files that are read."""


FOREIGN_SUFFIXES = frozenset({".m4a", ".aac", ".wma", ".mp4", ".amr", ".ape"})
"""Endings of audio files that libsndfile cannot read; they are reported."""


SHORTEST_S = 0.1


RATES_HZ = (2_000, 384_000)
"""Lowest and highest sample rate that is accepted."""


MOST_CHANNELS = 64


CURE = "export it again, or remove it"


class Unusable(DataError):
    """A file that is no clip. kind: what is wrong, in a word; str(error): one clause without the file's name."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class AudioHeader:
    """What a file's header says; nothing is decoded."""

    duration_s: float
    sample_rate_hz: int
    channels: int
    size: int
    mtime_ns: int


def file_facts(path: Path) -> os.stat_result:
    """What the file system says of a file that may hold audio. Raises Unusable; opens nothing."""
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
        cure = "a link that leads back to itself; remove it" if kind == "link" else error.strerror
        raise Unusable(kind, f"it cannot be opened ({cure})") from None
    except ValueError as error:  # a NUL in a path from a table
        raise Unusable("missing", f"it cannot be opened ({error})") from None
    if not os.access(path, os.R_OK):
        raise Unusable("permission", f"it may not be read (mode {facts.st_mode & 0o777:03o}); give yourself access")
    if stat.S_ISDIR(facts.st_mode) and path.is_symlink():
        raise Unusable("link", "it is a link to a folder, and those are not followed; put the folder itself there")
    if not stat.S_ISREG(facts.st_mode):
        what = " but a folder" if stat.S_ISDIR(facts.st_mode) else ""
        raise Unusable("no-file", f"it is no regular file{what}; remove or rename it")
    if facts.st_size == 0:
        raise Unusable("empty", f"the file is empty (0 bytes); {CURE}")
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise Unusable("format", f"it is {path.suffix}, which cannot be read; convert it to wav or flac")
    return facts


def read_header(path: Path) -> AudioHeader:
    """Read a file's header. Raises Unusable with the reason why the file cannot be used, without its name."""
    import soundfile

    facts = file_facts(path)
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error.error_string.rstrip(".")) from None
    check_header(info.samplerate, info.channels)
    if info.frames <= 0:
        raise Unusable(
            "no-samples", f"no samples stand behind its header (the file has {facts.st_size:,} bytes); {CURE}"
        )
    if info.duration < SHORTEST_S:
        raise too_short(info.frames, info.samplerate)
    return AudioHeader(
        duration_s=info.duration,
        sample_rate_hz=info.samplerate,
        channels=info.channels,
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
    )


def check_header(rate_hz: int, channels: int) -> None:
    """Raises Unusable for a rate or a number of channels that nobody records with."""
    if not RATES_HZ[0] <= rate_hz <= RATES_HZ[1]:
        raise Unusable(
            "rate",
            f"its header claims {rate_hz:,} Hz, and {RATES_HZ[0]:,} to {RATES_HZ[1]:,} Hz are believed; "
            "export it at its true rate",
        )
    if not 1 <= channels <= MOST_CHANNELS:
        raise Unusable("channels", f"its header claims {channels:,} channels, at most {MOST_CHANNELS} are read; {CURE}")


def too_short(frames: int, rate_hz: int) -> Unusable:
    held = "1 sample" if frames == 1 else f"{frames:,} samples"
    return Unusable(
        "short",
        f"it is {frames / rate_hz:.3g} s long ({held}), shorter than {SHORTEST_S} s; record it longer, or remove it",
    )


def _unreadable(path: Path, said: str) -> Unusable:
    """Why libsndfile does not open a file; its own words are the last resort, for they name no values."""
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
        return Unusable("text", "it is not readable as audio: it holds text; put the recording there, or remove it")
    if "not a regular file" in said:  # libsndfile's words for an mp3 that is none; it was seen to be a regular file
        said = "Format not recognised"
    return Unusable("unreadable", f"it is not readable as audio ({said}); {CURE}")
