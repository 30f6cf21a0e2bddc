"""A front end as data: rates, frames, mel bins, and the clip lengths that a network accepts. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sousa_engine.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class FrontEndSpec:
    """How a waveform becomes the log-mel frames that a backbone was trained on.

    kind: "kaldi-fbank" (AST, BEATs): frames of frame_ms every hop_ms, none beyond the edges, mean removed and
    pre-emphasised per frame; natural logarithm of at least `floor`. "efficientat": the clip pre-emphasised, frames
    centred on every hop; logarithm of power + floor. "htsat": centred frames, Slaney's mel scale; decibels of at least
    `floor`. mel_bins: triangles from low_hz to high_hz. window: "hann" or "povey" (Hann to the power of 0.85). scale:
    multiplies the waveform first. remove_mean: subtract each clip's mean. mean, std: normalised = (log-mel - mean) /
    (2 * std). min_frames, max_frames: the shortest and longest input that the network accepts.
    """

    kind: str = "kaldi-fbank"
    sample_rate_hz: int
    mel_bins: int
    frame_ms: float = 25.0
    hop_ms: float = 10.0
    low_hz: float = 20.0
    high_hz: float = 8000.0
    floor: float = 2.0**-23  # float32's epsilon, as in torchaudio's port of Kaldi
    window: str = "hann"
    scale: float = 1.0
    remove_mean: bool = True
    mean: float
    std: float
    min_frames: int
    max_frames: int

    @property
    def frame_samples(self) -> int:
        return round(self.sample_rate_hz * self.frame_ms * 0.001)

    @property
    def hop_samples(self) -> int:
        return round(self.sample_rate_hz * self.hop_ms * 0.001)

    @property
    def fft_samples(self) -> int:
        return 1 << (self.frame_samples - 1).bit_length()

    @property
    def silence(self) -> float:
        """The log-mel value of digital silence."""
        return 10 * math.log10(self.floor) if self.kind == "htsat" else math.log(self.floor)

    @property
    def ln_units(self) -> float:
        """Log-mel units per factor of e in power: 1, or 4.34 in decibels."""
        return 10 / math.log(10) if self.kind == "htsat" else 1.0

    def frames(self, samples: int) -> int:
        """Frames of a clip with this many samples. Raises DataError if the network does not accept it."""
        if self.kind == "kaldi-fbank":
            frames = 1 + (samples - self.frame_samples) // self.hop_samples
        else:
            frames = 1 + (samples - (self.kind == "efficientat")) // self.hop_samples
        frames = max(0, frames)
        self.check(frames, samples)
        return frames

    def check(self, frames: int, samples: int | None = None) -> None:
        """Raises DataError unless the network accepts this many frames."""
        if self.min_frames <= frames <= self.max_frames:
            return
        word = "short" if frames < self.min_frames else "long"
        shortest, longest = self.samples(self.min_frames), self.samples(self.max_frames + 1) - 1
        at_least = math.ceil(10 * shortest / self.sample_rate_hz) / 10
        fix = (
            f"Set data.clip_s={at_least:g}; shorter recordings are padded with silence."
            if word == "short"
            else f"Set data.clip_s to at most {self._seconds(longest)}."
        )
        raise DataError(
            f"A clip of {self._seconds(samples or self.samples(frames))} s is too {word}: this backbone accepts "
            f"{self._seconds(shortest)} to {self._seconds(longest)} s. {fix}"
        )

    def samples(self, frames: int) -> int:
        """The smallest number of samples that makes this many frames."""
        if self.kind == "kaldi-fbank":
            return self.frame_samples + (frames - 1) * self.hop_samples
        return (frames - 1) * self.hop_samples + (self.kind == "efficientat")

    def _seconds(self, samples: int) -> str:
        return f"{samples / self.sample_rate_hz:.4g}"
