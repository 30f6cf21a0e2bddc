"""Where things lie on disk: runs.db, one folder a run, caches. Paths only; opens nothing."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

LEAST_FREE_BYTES = 256 * 1024  # below it, SQLite's log and a run's spool cannot grow
PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A folder that holds runs.db and runs/. The default is the project's top level; SOUSA_WORKSPACE overrides."""

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
        """Imported or downloaded backbone weights: one folder a variant."""
        return self.runs / ".weights"

    @property
    def trash(self) -> Path:
        """Folders of runs that are being deleted: trash.py."""
        return self.runs / ".trash"

    @property
    def supervisor_lock(self) -> Path:
        return self.runs / "supervisor.lock"

    @property
    def supervisor_log(self) -> Path:
        return self.runs / "supervisor.log"

    @property
    def has_db(self) -> bool:
        """Whether runs.db is there, as far as we may look; who opens it is told why not."""
        try:
            return self.db.is_file()
        except PermissionError:
            return False

    def full_disk(self) -> str:
        """A sentence when the disk is full, else "". Runs then wait, and runs.db stands still until there is room."""
        try:
            free = shutil.disk_usage(self.root).free
        except OSError:
            return ""
        if free >= LEAST_FREE_BYTES:
            return ""
        return f"The disk of {self.root} is full: nothing new can be recorded. Free some space; runs go on from there."

    def run_dir(self, run_id: str) -> Path:
        """The folder of one run. Ids are checked, so a crafted id never leaves runs/."""
        if not re.fullmatch(r"[0-9A-Za-z-]{1,64}", run_id):
            raise ValueError(f"{run_id[:64]!r} is not a run id.")
        return self.runs / run_id


def default_workspace() -> Workspace:
    return Workspace(root=Path(os.environ.get("SOUSA_WORKSPACE") or PROJECT_ROOT).resolve())
