"""Replace runs.db by a copy: `python -m sousa_engine db restore FILE`.

The copy is checked, copied and upgraded to the current schema next to runs.db, which is kept under a dated name and
replaced in one step: interrupted at any moment, either the old one or the new one is there. No other process may be at
work, as for rebuild.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sousa_engine.core.errors import UserError, WorkspaceError
from sousa_engine.maintenance import check, rebuild
from sousa_engine.maintenance.salvage import Old, database_files, pause_queue
from sousa_engine.store import migrations
from sousa_engine.workspace import Workspace, file_systems


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The result. kept: the file before. behind: ids of runs whose folder is newer than the copy.

    If there are any, the queue is paused: otherwise one that is queued in the copy would overwrite its own results.
    """

    runs: int
    behind: tuple[str, ...]
    kept: Path | None


def restore(workspace: Workspace, file: Path) -> Restored:
    """Raises UserError if the file is not an intact copy, WorkspaceError as rebuild does; nothing is changed then."""
    file_systems.refuse_network(workspace)
    if workspace.db.exists() and file.exists() and file.samefile(workspace.db):
        raise UserError(f"{file} is runs.db itself. Choose a copy of it.")
    with check.sound(file) as copy:
        migrations.make_folders(workspace)
        with rebuild.alone(workspace):
            new_file = workspace.root / ".runs.restored.db"
            try:
                for stale in database_files(new_file):
                    stale.unlink(missing_ok=True)  # of a restore that was killed
                migrations.copy_into(copy, new_file)
                migrations.upgrade_file(new_file)
                with Old.open(new_file) as new:
                    rows = new.rows("runs")
                behind = rebuild.behind(workspace, rows)
                if behind:
                    pause_queue(new_file)
                kept = rebuild.put_in_place(new_file, workspace.db, "restore")
            except OSError as error:
                raise WorkspaceError(f"runs.db is unchanged: {error.filename}: {error.strerror}.") from error
            finally:
                for torn in database_files(new_file):
                    torn.unlink(missing_ok=True)
    return Restored(runs=len(rows), behind=behind, kept=kept)
