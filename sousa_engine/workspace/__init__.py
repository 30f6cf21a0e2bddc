"""The files of a workspace: paths, run files, spools, locks, processes. Knows no database and no network."""

from sousa_engine.workspace.paths import LEAST_FREE_BYTES, PROJECT_ROOT, Workspace, default_workspace

# pyright: reportUnsupportedDunderAll=false
# Some names are modules, which are imported only where they are needed.
__all__ = [
    "LEAST_FREE_BYTES",
    "PROJECT_ROOT",
    "Workspace",
    "default_workspace",
    "file_systems",
    "intake",
    "locks",
    "oom",
    "processes",
    "run_files",
    "spool",
]
