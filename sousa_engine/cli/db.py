"""`db check`, `db backup`, `db restore` and `db rebuild`: maintenance of runs.db."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from sousa_engine.cli.types import TypedPath
from sousa_engine.core.errors import WorkspaceError
from sousa_engine.maintenance import check, rebuild, restore
from sousa_engine.workspace import Workspace

_COPIES_SHOWN = 3


@click.group()
def db() -> None:
    """Maintain runs.db: check it, back it up, restore a backup, rebuild it from the run folders."""


@db.command("check")
@click.pass_obj
def check_command(workspace: Workspace) -> None:
    """Check runs.db for damage and against the run folders (read-only). Exit code 1 if there is a problem."""
    found = check.check(workspace)
    for fact in found.facts:
        click.echo(f"ok       {fact}")
    for finding in found.findings:
        click.echo(f"PROBLEM  {finding}")
    sys.exit(1 if found.findings else 0)


@db.command()
@click.argument("file", required=False, type=TypedPath())
@click.pass_obj
def backup(workspace: Workspace, file: Path | None) -> None:
    """Copy runs.db to FILE, or next to runs.db under a dated name. This is safe while runs are active.

    An existing file is never overwritten. The run folders (logs, checkpoints, adapters) are not included: copy runs/
    as well to keep them.
    """
    made = check.backup(workspace, file)
    click.echo(f"{made} ({made.stat().st_size / 2**20:,.1f} MiB)")


@db.command("restore")
@click.argument("file", type=TypedPath())
@click.pass_obj
def restore_command(workspace: Workspace, file: Path) -> None:
    """Replace runs.db by FILE, a copy made by `db backup` or before a migration. Close the studio first.

    The copy is checked first and is not moved; the current runs.db is kept next to the new one.
    """
    made = restore.restore(workspace, file)
    click.echo(f"{_runs(made.runs)} in runs.db, restored from {file}")
    if made.kept:
        click.echo(f"previous file: {made.kept}")
    if made.behind:
        shown = ", ".join(made.behind[:5]) + (" ..." if len(made.behind) > 5 else "")
        click.echo(
            f"{_runs(len(made.behind))} trained after that copy was made: {shown}. "
            "To add their results: python -m sousa_engine db rebuild. The queue is paused so that none of them is "
            "trained again; afterwards: python -m sousa_engine queue resume"
        )


@db.command("rebuild")
@click.pass_obj
def rebuild_command(workspace: Workspace) -> None:
    """Rebuild runs.db from the run folders. Close the studio first. The old file is kept next to the new one.

    Tags, notes and sweeps are not in the folders; they are taken from the old file if it can be read.
    """
    instead = _instead(workspace)
    try:
        made = rebuild.rebuild(workspace)
    except WorkspaceError:
        for line in instead:
            click.echo(line, err=True)
        raise
    click.echo(f"{_runs(made.runs)} in the new runs.db")
    if made.from_files:
        click.echo(f"{_runs(len(made.from_files))} of these known only from a folder")
    if made.without_folder:
        click.echo(f"{_runs(made.without_folder)} of these without a folder, known only from the old runs.db")
    for line in made.left_out:
        click.echo(f"left out: {line}")
    for line in made.lost:
        click.echo(f"lost: {line}")
    if made.kept:
        click.echo(f"old file: {made.kept}")
    for line in instead:
        click.echo(line)


def _instead(workspace: Workspace) -> list[str]:
    """One line for each of the newest copies that could be restored instead."""
    return [
        f"alternatively, restore the copy of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(copy.made_s))}, "
        f"{_runs(copy.runs)}: python -m sousa_engine db restore {shlex.quote(str(copy.path))}"
        for copy in check.copies(workspace)[:_COPIES_SHOWN]
    ]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"
