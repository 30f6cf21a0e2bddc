"""Files of a workspace: paths, run files, spools, locks, processes. Knows no database and no network."""

from sousa_engine.workspace.paths import LEAST_FREE_BYTES, PROJECT_ROOT, Workspace, default_workspace

__all__ = ["LEAST_FREE_BYTES", "PROJECT_ROOT", "Workspace", "default_workspace"]
