"""Waveforms of clips: rendered or read, mono, resampled, padded or cut to one length. numpy only."""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sousa_engine.data import synth
from sousa_engine.errors import DataError

if TYPE_CHECKING:
    from sousa_engine.data.manifest import Clip, Manifest

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
"""Endings of files that are read."""
FOREIGN_SUFFIXES = frozenset({".m4a", ".aac", ".wma", ".mp4", ".amr", ".ape"})
"""Endings of audio that is met and reported, and that libsndfile cannot read."""

SHORTEST_S = 0.1
_RATES_HZ = (2_000, 384_000)  # slowest and fastest sample rate that is believed
_TAIL_S = 0.05  # read beyond the clip's end, so that resampling has no edge there


@dataclass(frozen=True, kw_only=True)
class AudioHeader:
    """What a file's header says; nothing is decoded."""

    duration_s: float
    sample_rate_hz: int
    channels: int
    size: int
    mtime_ns: int


def probe(path: Path) -> AudioHeader:
    """Read a file's header. Raises DataError with the reason why the file cannot be used, without its name."""
    import soundfile

    try:
        facts = path.stat()
    except FileNotFoundError:
        raise DataError("there is no such file") from None
    except OSError as error:
        raise DataError(f"it cannot be opened ({error.strerror})") from None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError("it is no regular file")
    if facts.st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    if path.suffix.lower() in FOREIGN_SUFFIXES:
        raise DataError(f"{path.suffix} cannot be read; convert it to wav or flac")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise DataError(f"it is not readable as audio ({error.error_string.rstrip('.')})") from None
    if not _RATES_HZ[0] <= info.samplerate <= _RATES_HZ[1]:
        raise DataError(f"its header claims {info.samplerate} Hz")
    if info.frames <= 0:
        raise DataError("it holds no samples")
    if info.duration < SHORTEST_S:
        raise DataError(f"it is {info.duration:.3f} s long, shorter than {SHORTEST_S} s")
    return AudioHeader(
        duration_s=info.duration,
        sample_rate_hz=info.samplerate,
        channels=info.channels,
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
    )


def samples(clip_s: float, sample_rate_hz: int) -> int:
    """Length of every waveform of a data set, in samples."""
    return round(clip_s * sample_rate_hz)


def waveform(manifest: Manifest, clip: Clip, sample_rate_hz: int | None = None) -> np.ndarray:
    """One clip as float32 (samples,), mono, in [-1, 1], exactly manifest.clip_s long.

    Longer recordings give their first clip_s seconds, shorter ones are followed by silence. Channels are averaged.
    sample_rate_hz: None means the manifest's own. Raises DataError naming the file and what is wrong with it.
    """
    return load(clip.source, manifest.clip_s, sample_rate_hz or manifest.sample_rate_hz)


def load(source: synth.ClipPlan | Path, clip_s: float, sample_rate_hz: int) -> np.ndarray:
    """As `waveform`, for a clip's source alone: what a worker process needs to know."""
    if isinstance(source, Path):
        found, found_hz = _read(source, clip_s)
    else:
        found, found_hz = synth.render(source), synth.sound.SAMPLE_RATE_HZ
    return fit(resample(found, found_hz, sample_rate_hz), samples(clip_s, sample_rate_hz))


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """float32 (samples,) at another rate, by soxr's high quality; untouched when the rates agree."""
    if from_hz == to_hz:
        return waveform
    import soxr

    return soxr.resample(waveform, from_hz, to_hz, quality="HQ").astype(np.float32, copy=False)


def fit(waveform: np.ndarray, length: int) -> np.ndarray:
    """float32 (length,): cut at the end, or followed by zeros."""
    if waveform.size >= length:
        return np.ascontiguousarray(waveform[:length])
    return np.pad(waveform, (0, length - waveform.size))


def _read(path: Path, clip_s: float) -> tuple[np.ndarray, int]:
    """The first clip_s seconds (and a little more) of a file: float32 (samples,), and its rate."""
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as file:
            rate_hz = file.samplerate
            wanted = min(file.frames, math.ceil((clip_s + _TAIL_S) * rate_hz))
            blocks = file.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(
            f"{path} cannot be decoded ({str(error).rstrip('.')}). Export it again, or remove it."
        ) from None
    # Compressed formats only estimate their length, so a small gap is none.
    if len(blocks) < 0.98 * wanted:
        raise DataError(
            f"{path} is cut short: its header promises {wanted:,} samples here, it holds {len(blocks):,}. "
            "Export it again, or remove it."
        )
    if not np.isfinite(blocks).all():
        raise DataError(f"{path} holds samples that are no numbers (NaN or infinite). Export it again, or remove it.")
    mono = blocks.mean(axis=1) if blocks.shape[1] > 1 else blocks[:, 0]
    return np.ascontiguousarray(mono, dtype=np.float32), rate_hz
