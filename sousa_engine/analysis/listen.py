"""Spectrogram, onsets and tempo of a clip, by librosa. For display, not for training.

librosa is imported inside the functions: the import takes seconds, and half a minute the first time on a machine,
because it compiles code that it then caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MELS = 96
RANGE_DB = 80.0
_SHARES = tuple(
    Fraction(p, q) for p, q in ((1, 4), (1, 3), (1, 2), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (2, 1), (3, 1), (4, 1))
)


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Lowest and highest sample of equal slices of time. Each array: (points,) float32."""

    times_s: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """db: (mels, frames) float32, 0 at the loudest cell and never below -80. times_s: (frames,). mels_hz: (mels,)."""

    times_s: np.ndarray
    mels_hz: np.ndarray
    db: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Listening:
    """tempo_bpm: librosa's estimate of the beat; None if it finds no onset."""

    spectrogram: Spectrogram
    onsets_s: tuple[float, ...]
    tempo_bpm: float | None


def envelope(waveform: np.ndarray, sample_rate_hz: int, points: int = 600) -> Envelope:
    """Envelope of float32 (samples,) in at most `points` slices. Does not need librosa."""
    edges = np.linspace(0, waveform.size, min(points, waveform.size) + 1).astype(int)
    return Envelope(
        times_s=(edges[:-1] + edges[1:]) / 2 / sample_rate_hz,
        low=np.minimum.reduceat(waveform, edges[:-1]),
        high=np.maximum.reduceat(waveform, edges[:-1]),
    )


def listen(waveform: np.ndarray, sample_rate_hz: int) -> Listening:
    """Spectrogram, onset times and tempo of float32 (samples,)."""
    onsets_s = onset_times(waveform, sample_rate_hz)
    return Listening(
        spectrogram=mel_spectrogram(waveform, sample_rate_hz),
        onsets_s=onsets_s,
        tempo_bpm=tempo_bpm(waveform, sample_rate_hz) if onsets_s else None,
    )


def mel_spectrogram(waveform: np.ndarray, sample_rate_hz: int) -> Spectrogram:
    """64 ms windows every 10 ms: short enough to show both strokes of a flam, long enough to show the drum's pitch."""
    import librosa

    hop = sample_rate_hz // 100
    window = 1 << (int(sample_rate_hz * 0.032).bit_length())
    power = librosa.feature.melspectrogram(
        y=waveform, sr=sample_rate_hz, n_fft=window, win_length=window // 2, hop_length=hop, n_mels=MELS, fmin=30.0
    )
    db = librosa.power_to_db(power, ref=max(float(power.max()), 1e-10), top_db=RANGE_DB)
    return Spectrogram(
        times_s=np.arange(db.shape[1]) * hop / sample_rate_hz,
        mels_hz=librosa.mel_frequencies(n_mels=MELS, fmin=30.0, fmax=sample_rate_hz / 2),
        db=db.astype(np.float32),
    )


def onset_times(waveform: np.ndarray, sample_rate_hz: int) -> tuple[float, ...]:
    """Times in s at which librosa finds an onset. A flam counts as one; so may two strokes 30 ms apart."""
    import librosa

    found = librosa.onset.onset_detect(y=waveform, sr=sample_rate_hz, hop_length=sample_rate_hz // 125, units="time")
    return tuple(round(float(t), 4) for t in found)


def tempo_bpm(waveform: np.ndarray, sample_rate_hz: int) -> float | None:
    """librosa's beat in beats per minute; None if nothing repeats. It is often a simple fraction of the true tempo."""
    import librosa

    found = float(librosa.feature.tempo(y=waveform, sr=sample_rate_hz, hop_length=sample_rate_hz // 125)[0])
    return found if np.isfinite(found) and found > 0 else None


def tempo_share(heard_bpm: float, written_bpm: float, tolerance: float = 0.05) -> Fraction | None:
    """heard / written as a simple fraction (1/4 to 4), or None. Beat trackers often find half or a third of a tempo."""
    ratio = heard_bpm / written_bpm
    near = min(_SHARES, key=lambda share: abs(ratio / float(share) - 1))
    return near if abs(ratio / float(near) - 1) <= tolerance else None


def warm_up() -> None:
    """Make librosa compile what `listen` needs, half a minute once per machine, so that no page has to wait for it."""
    listen(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000)


if __name__ == "__main__":
    warm_up()
