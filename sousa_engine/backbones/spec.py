"""What a backbone is, as frozen records: variants, front ends, networks. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sousa_engine.errors import DataError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FrontEndSpec:
    """How a waveform becomes the log-mel frames a backbone was trained on.

    kind "kaldi-fbank": frames of frame_ms every hop_ms, no padding at the edges; mel_bins triangles from low_hz to
    high_hz; natural logarithm with `floor` as the smallest power. normalised = (log-mel - mean) / (2 * std).
    min_frames, max_frames: the shortest and longest input of the network.
    """

    kind: str = "kaldi-fbank"
    sample_rate_hz: int
    mel_bins: int
    frame_ms: float = 25.0
    hop_ms: float = 10.0
    low_hz: float = 20.0
    high_hz: float = 8000.0
    floor: float = 2.0**-23  # the float32 epsilon, as Kaldi's reference front end in torchaudio has it
    mean: float
    std: float
    min_frames: int
    max_frames: int

    @property
    def frame_samples(self) -> int:
        return int(self.sample_rate_hz * self.frame_ms * 0.001)

    @property
    def hop_samples(self) -> int:
        return int(self.sample_rate_hz * self.hop_ms * 0.001)

    def frames(self, samples: int) -> int:
        """Frames of a clip of so many samples; raises DataError if the network cannot take it."""
        frames = max(0, 1 + (samples - self.frame_samples) // self.hop_samples)
        self.check(frames, samples)
        return frames

    def check(self, frames: int, samples: int | None = None) -> None:
        """Raises DataError unless the network takes so many frames."""
        if self.min_frames <= frames <= self.max_frames:
            return
        word = "short" if frames < self.min_frames else "long"
        shortest, longest = self.samples(self.min_frames), self.samples(self.max_frames + 1) - 1
        raise DataError(
            f"A clip of {self._seconds(samples or self.samples(frames))} s is too {word}: this backbone takes "
            f"{self._seconds(shortest)} to {self._seconds(longest)} s. Set data.clip_s."
        )

    def samples(self, frames: int) -> int:
        """The fewest samples that make so many frames."""
        return self.frame_samples + (frames - 1) * self.hop_samples

    def _seconds(self, samples: int) -> str:
        return f"{samples / self.sample_rate_hz:.4g}"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One backbone one can choose. architecture: the settings its network is built with.

    embedded: its weights are part of this package. needs: one sentence on what pretrained weights need.
    """

    name: str
    family: str
    title: str
    description: str
    licence: str
    source: str
    hub_id: str | None
    embedded: bool
    needs: str
    head_path: str
    front_end: FrontEndSpec
    architecture: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Of the network with 40 classes, from its outline."""
        from sousa_engine.module_tree import load_outline

        return load_outline(self.name).total_parameters

    @property
    def sample_rate_hz(self) -> int:
        return self.front_end.sample_rate_hz

    @property
    def max_frames(self) -> int:
        return self.front_end.max_frames


@dataclass(frozen=True, kw_only=True)
class WeightsState:
    """What weights a network would get. path: the file, or None for the hub. message: the ways out if unavailable."""

    available: bool
    label: str
    path: Path | None
    message: str


@dataclass(frozen=True, kw_only=True)
class Network:
    """A built backbone with a new head, and what it was built from."""

    module: nn.Module = field(repr=False)
    variant: Variant
    spec: FrontEndSpec
    weights_label: str
    head_path: str
    num_classes: int
