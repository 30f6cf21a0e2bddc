"""Where files are: runs.db, one folder per run, caches. Paths only; opens nothing."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

LEAST_FREE_BYTES = 256 * 1024  # with less, SQLite's log and a run's spool cannot grow
PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder with runs.db and runs/. The default is the project's root; SOUSA_WORKSPACE overrides it."""

    root: Path

    @property
    def db(self) -> Path:
        return self.root / "runs.db"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        return self.runs / ".cache"

    @property
    def weights(self) -> Path:
        """Imported or downloaded backbone weights: one folder per variant."""
        return self.runs / ".weights"

    @property
    def trash(self) -> Path:
        """Folders of runs that are being deleted: store/trash.py."""
        return self.runs / ".trash"

    @property
    def supervisor_lock(self) -> Path:
        return self.runs / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.runs / "supervisor.log"

    @property
    def has_db(self) -> bool:
        """Whether runs.db exists. False without permission to look: opening it says why."""
        try:
            return self.db.is_file()
        except PermissionError:
            return False

    def full_disk(self) -> str:
        """A sentence if the disk is full, else "". Until there is room, runs wait and runs.db does not change."""
        try:
            free = shutil.disk_usage(self.root).free
        except OSError:
            return ""
        if free >= LEAST_FREE_BYTES:
            return ""
        return f"The disk of {self.root} is full: nothing new can be recorded. Free some space; runs then continue."

    def study(self, sweep_id: str) -> Path:
        """Optuna's database of one sweep. Raises ValueError for a crafted id."""
        return self.runs / ".sweeps" / f"{self.run_dir(sweep_id).name}.db"

    def run_dir(self, run_id: str) -> Path:
        """The folder of one run. Raises ValueError for a crafted id, so that no path leaves runs/."""
        if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", run_id):
            raise ValueError(f"{run_id[:64]!r} is not a run id.")
        return self.runs / run_id


def default_workspace() -> Workspace:
    return Workspace(root=Path(os.environ.get("SOUSA_WORKSPACE") or PROJECT_ROOT).resolve())
