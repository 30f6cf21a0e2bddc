"""A data set, opened once and shared: its manifest, the soundness of its files, and the findings on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import DataError
from sousa_engine.data import findings, layouts, scan, synth
from sousa_engine.data import manifest as manifests
from sousa_engine.data.clips import Excluded, Manifest
from sousa_engine.data.findings import Findings
from sousa_engine.data.layouts import Recordings
from sousa_engine.data.soundness import Soundness
from sousa_engine.workspace import Workspace
from sousa_engine.workspace.intake import Tell


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set as it was when it was opened; later changes of its files do not show.

    recordings: the files that it lists; None for an embedded set. soundness: by path, what is known of each file;
    a file without known facts is missing.
    """

    config: DataConfig
    recordings: Recordings | None
    soundness: Mapping[str, Soundness]

    @classmethod
    def open(cls, config: DataConfig, workspace: Workspace) -> DataSet:
        """Open the data set that `config.dataset` names, with what earlier scans found; the rest by its headers.

        This process opens no file of unknown origin: workers read the headers. Raises UnknownNameError or DataError if
        there is no such data set; WorkspaceError if no worker can be started.
        """
        if config.dataset in synth.PRESETS:
            return cls(config=config, recordings=None, soundness={})
        recordings = manifests.list_files(config)
        return cls(config=config, recordings=recordings, soundness=scan.soundness(config, recordings, workspace))

    @classmethod
    def scan(
        cls,
        config: DataConfig,
        workspace: Workspace,
        *,
        tell: Tell | None = None,
        lock_fd: int | None = None,
        fresh: bool = False,
    ) -> DataSet:
        """Like `open`, but decode every file first that no scan has seen. Arguments and errors as in scan.scan."""
        if config.dataset in synth.PRESETS:
            return cls(config=config, recordings=None, soundness={})
        recordings = manifests.list_files(config)
        known = scan.scan(config, workspace, recordings, tell=tell, lock_fd=lock_fd, fresh=fresh)
        return cls(config=config, recordings=recordings, soundness=layouts.as_now(recordings.paths, known))

    @property
    def manifest(self) -> Manifest:
        """Its clips, labels and splits. Raises DataError if it cannot be used for training."""
        manifest, _, refusal = self._opened
        if manifest is None:
            raise DataError(refusal)
        return manifest

    @cached_property
    def findings(self) -> Findings:
        """The findings on it, also if it cannot be used for training; strict if its config is."""
        if self.recordings is None:
            return findings.of_embedded(self.manifest, strict=self.config.strict)
        manifest, excluded, refusal = self._opened
        found = findings.find(self.config.dataset, self.recordings, self.soundness, manifest, excluded, refusal)
        return findings.as_strict(found) if self.config.strict else found

    @cached_property
    def _opened(self) -> tuple[Manifest | None, tuple[Excluded, ...], str]:
        """The manifest, the files and rows that are left out, and why there is no manifest ("" if there is one)."""
        if self.recordings is None:
            return manifests.open_dataset(self.config), (), ""
        readable = layouts.read_headers(self.recordings, self.soundness)
        try:
            manifest = manifests.from_recordings(self.config, self.recordings, readable)
        except DataError as error:
            return None, readable.excluded, str(error)
        return manifest, manifest.excluded, ""
