"""What a backbone is, as frozen records: variants, downloads, networks. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sousa_engine.frontends import FrontEndSpec
from sousa_engine.targets import load_outline

if TYPE_CHECKING:
    from sousa_engine.backbones.waveforms import TakesWaveforms


@dataclass(frozen=True, kw_only=True)
class Download:
    """Where published weights are. url: of the file itself, None if it must be downloaded by hand from `page`.

    file: its name there. size_bytes, sha256: if they are known; a download is checked against them.
    """

    page: str
    file: str
    url: str | None
    size_bytes: int | None = None
    sha256: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One selectable backbone. architecture: the settings that its network is built with.

    embedded: its weights come with this package; download: where published weights are, if there are any. needs: one
    sentence on how to get pretrained weights.
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
        return load_outline(self.name).total_parameters

    @property
    def sample_rate_hz(self) -> int:
        return self.front_end.sample_rate_hz

    @property
    def max_frames(self) -> int:
        return self.front_end.max_frames


@dataclass(frozen=True, kw_only=True)
class WeightsState:
    """The weights that a network would get. path: None before a download. message: the options if unavailable."""

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
