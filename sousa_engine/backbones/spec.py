"""What a backbone is, as frozen records: variants, front ends, networks. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sousa_engine.frontends import FrontEndSpec

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms


@dataclass(frozen=True, kw_only=True)
class Download:
    """Where published weights are. url: the file itself, None where it has to be fetched by hand from `page`.

    file: its name there. size_bytes, sha256: where they are known; a download is checked against them.
    """

    page: str
    file: str
    url: str | None
    size_bytes: int | None = None
    sha256: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One backbone one can choose. architecture: the settings its network is built with.

    embedded: its weights are part of this package; download: where the published ones are, if there are any. needs: one
    sentence on what pretrained weights need.
    """

    name: str
    family: str
    title: str
    description: str
    licence: str
    source: str
    download: Download | None
    embedded: bool
    needs: str
    head_path: str
    front_end: FrontEndSpec
    architecture: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Of the network with 40 classes, from its outline."""
        from sousa_engine.targets import load_outline

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

    module: TakesWaveforms = field(repr=False)
    variant: Variant
    spec: FrontEndSpec
    weights_label: str
    head_path: str
    num_classes: int
