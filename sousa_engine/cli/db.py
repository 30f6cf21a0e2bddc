"""`db check`, `db backup`, `db restore` and `db rebuild`: looking after runs.db."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import click

from sousa_engine.core.errors import WorkspaceError
from sousa_engine.maintenance import check, rebuild, restore
from sousa_engine.workspace import Workspace

_COPIES_SHOWN = 3


@click.group()
def db() -> None:
    """Look after runs.db: check it, copy it, put a copy back, make it again from the runs' folders."""


@db.command("check")
@click.pass_obj
def check_command(workspace: Workspace) -> None:
    """Is runs.db whole, does it agree with the runs' folders? Changes nothing. Exit code 1 if something is wrong."""
    found = check.check(workspace)
    for fact in found.facts:
        click.echo(f"ok       {fact}")
    for finding in found.findings:
        click.echo(f"PROBLEM  {finding}")
    sys.exit(1 if found.findings else 0)


@db.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.pass_obj
def backup(workspace: Workspace, file: Path | None) -> None:
    """Copy runs.db whole, trainings or not: to FILE, or beside it under a dated name. Never over a file that is there.

    The runs' folders (logs, checkpoints, adapters) are no part of it: copy runs/ for these.
    """
    made = check.backup(workspace, file)
    click.echo(f"{made} ({made.stat().st_size / 2**20:,.1f} MiB)")


@db.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_obj
def restore_command(workspace: Workspace, file: Path) -> None:
    """Put FILE, a copy by `db backup` or from before a migration, in the place of runs.db. Close the studio first.

    The copy is checked first and stays where it is; runs.db is kept beside the new one.
    """
    made = restore.restore(workspace, file)
    click.echo(f"{_runs(made.runs)} in runs.db, as {file} has them")
    if made.kept:
        click.echo(f"the file before: {made.kept}")
    if made.behind:
        shown = ", ".join(made.behind[:5]) + (" ..." if len(made.behind) > 5 else "")
        click.echo(
            f"{_runs(len(made.behind))} trained since that copy was made: {shown}. "
            "Take that in: python -m sousa_engine db rebuild. The queue is paused, lest one is trained again; "
            "afterwards: python -m sousa_engine queue resume"
        )


@db.command("rebuild")
@click.pass_obj
def rebuild_command(workspace: Workspace) -> None:
    """Make runs.db again from the runs' folders. Close the studio first. The old file is kept beside the new one.

    What stands in no folder (tags, notes, sweeps) is taken from the old file where that can be read.
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
        click.echo(f"{_runs(len(made.from_files))} of these from the folder alone")
    if made.without_folder:
        click.echo(f"{_runs(made.without_folder)} of these without a folder, from the old runs.db")
    for line in made.left_out:
        click.echo(f"left out: {line}")
    for line in made.lost:
        click.echo(f"lost: {line}")
    if made.kept:
        click.echo(f"the old file: {made.kept}")
    for line in instead:
        click.echo(line)


def _instead(workspace: Workspace) -> list[str]:
    """A line for each of the newest copies that could be had back instead."""
    return [
        f"or instead, as it was on {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(copy.made_s))}, "
        f"{_runs(copy.runs)}: python -m sousa_engine db restore {shlex.quote(str(copy.path))}"
        for copy in check.copies(workspace)[:_COPIES_SHOWN]
    ]


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count:,} runs"
