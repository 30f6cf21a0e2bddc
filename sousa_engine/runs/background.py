"""Start long work in a separate process, which continues when its caller ends: weights, baselines, scans.

Each is a command of `python -m sousa_engine` that holds the lock of a folder; `intake.look` tells its progress.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sousa_engine.analysis import baselines
from sousa_engine.backbones import Variant, pretrained
from sousa_engine.core.config import DataConfig
from sousa_engine.core.errors import WeightsError, WorkspaceError
from sousa_engine.data import manifest as manifests
from sousa_engine.data import scan
from sousa_engine.data.dataset import DataSet
from sousa_engine.workspace import Workspace, intake


def take_in_weights(workspace: Workspace, variant: Variant, words: Sequence[str]) -> bool:
    """Run `weights WORDS`, a fetch or an import for `variant`.

    False if another process already fetches or imports them. Raises WeightsError if the workspace cannot be written to.
    """
    folder = pretrained.intake_folder(variant, workspace)
    try:
        return intake.start_in(folder, _command(workspace, "weights", *words))
    except WorkspaceError as error:
        raise WeightsError(str(error)) from None


def compute_baselines(workspace: Workspace, data: DataSet) -> bool:
    """Run `baselines` on `data`; baselines.look tells the progress.

    False if another process already computes them. Raises DataError for data that cannot be used for training,
    WorkspaceError if the workspace cannot be written to.
    """
    folder = baselines.folder_of(data.manifest, workspace)
    words = [manifests.absolute(data.config.dataset), *_words(data.config)]
    return intake.start_in(folder, _command(workspace, "baselines", *words))


def scan_data(workspace: Workspace, data: DataConfig, *, fresh: bool = False) -> bool:
    """Run `scan` on `data`; scan.look tells the progress.

    False if another process already scans it. Raises DataError for data that cannot be opened, WorkspaceError if the
    workspace cannot be written to.
    """
    manifests.list_files(data)
    command = _command(workspace, "scan", *(["--fresh"] if fresh else []))
    return intake.start_in(
        scan.folder_of(data, workspace), command, ["--", manifests.absolute(data.dataset), *_words(data)]
    )


def _words(data: DataConfig) -> list[str]:
    changed = data.model_dump(exclude_defaults=True, exclude={"dataset"})
    return [f"data.{name}={value}" for name, value in changed.items()]


def _command(workspace: Workspace, *words: str) -> list[str]:
    return [sys.executable, "-m", "sousa_engine", "--workspace", str(workspace.root), *words]
