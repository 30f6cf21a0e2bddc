"""Waveforms of clips: rendered or read, mixed down, resampled, and padded or cut to one length. numpy only."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from sousa_engine.core.errors import DataError
from sousa_engine.data import headers, synth
from sousa_engine.data.clips import Clip, Manifest
from sousa_engine.data.downmix import mixed

_TAIL_S = 0.05  # read beyond the clip's end, so that resampling has no edge there


def samples(clip_s: float, sample_rate_hz: int) -> int:
    """The length of every waveform of a data set, in samples."""
    return round(clip_s * sample_rate_hz)


def waveform(manifest: Manifest, clip: Clip, sample_rate_hz: int | None = None) -> np.ndarray:
    """One clip as float32 (samples,), mono, in [-1, 1], exactly manifest.clip_s long.

    Longer recordings are cut to their first clip_s seconds, shorter ones padded with silence. Channels
    are averaged; where they would cancel each other, the loudest one is used.
    sample_rate_hz: None means the manifest's. Raises DataError naming the file and what is wrong with it.
    """
    return load(clip.source, manifest.clip_s, sample_rate_hz or manifest.sample_rate_hz)


def load(source: synth.ClipPlan | Path, clip_s: float, sample_rate_hz: int) -> np.ndarray:
    """Like `waveform`, but needs only a clip's source, which a worker process receives."""
    if isinstance(source, Path):
        found, found_hz = _read(source, clip_s)
    else:
        found, found_hz = synth.render(source), synth.sound.SAMPLE_RATE_HZ
    return fit(resample(found, found_hz, sample_rate_hz), samples(clip_s, sample_rate_hz))


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """float32 (samples,) at another rate, by soxr at high quality; unchanged if the rates are equal."""
    if from_hz == to_hz:
        return waveform
    import soxr

    return soxr.resample(waveform, from_hz, to_hz, quality="HQ").astype(np.float32, copy=False)


def fit(waveform: np.ndarray, length: int) -> np.ndarray:
    """float32 (length,): cut at the end, or padded with zeros."""
    if waveform.size >= length:
        return np.ascontiguousarray(waveform[:length])
    return np.pad(waveform, (0, length - waveform.size))


def _read(path: Path, clip_s: float) -> tuple[np.ndarray, int]:
    """The first clip_s seconds (and a little more) of a file: float32 (samples,), and its rate."""
    import soundfile

    try:
        with headers.opened(path) as file:
            rate_hz = file.samplerate
            wanted = min(file.frames, math.ceil((clip_s + _TAIL_S) * rate_hz))
            blocks = file.read(wanted, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(
            f"{path} cannot be decoded ({str(error).rstrip('.')}). Export it again, or remove it."
        ) from None
    # Compressed formats only estimate their length, so a small gap does not count.
    if len(blocks) < 0.98 * wanted:
        raise DataError(
            f"{path} is truncated: its header promises {wanted:,} samples here, it holds {len(blocks):,}. "
            "Export it again, or remove it."
        )
    if not np.isfinite(blocks).all():
        raise DataError(f"{path} holds samples that are NaN or infinite. Export it again, or remove it.")
    return np.ascontiguousarray(mixed(blocks), dtype=np.float32), rate_hz
